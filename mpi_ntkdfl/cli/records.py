"""The commands that read records: `show`, `compare`, `plot`, `export`."""

from __future__ import annotations

from pathlib import Path

import click

from mpi_ntkdfl.cli.options import RECORD, RECORDS, warn
from mpi_ntkdfl.storage.outputs import Outputs


@click.command()
@RECORD
@click.option("--follow", is_flag=True, help="Keep watching, a line an evaluation, until the end.")
@click.option(
    "--interval", type=click.FloatRange(0.1), default=2.0, help="Seconds between looks; default 2."
)
def show(record: Path, follow: bool, interval: float) -> None:
    """Tell what ran, the final numbers, the traffic, and the time by phase.

    Works on finished, running and killed runs alike.
    """
    from mpi_ntkdfl.analysis import live, tables

    outputs = Outputs(record)
    if follow:
        for line in live.follow(outputs, interval):
            click.echo(line)
    run = tables.read(record)
    click.echo(f"{tables.summary(run)}\n\n{live.status(outputs, run)}")


@click.command()
@RECORDS
@click.option(
    "--target",
    "targets",
    type=click.FloatRange(0, 1),
    multiple=True,
    default=(0.85,),
    show_default=True,
    help="Accuracy of the average to reach. Repeatable.",
)
@click.option("--runs", is_flag=True, help="List every run below its configuration.")
@click.option(
    "--csv", "table", type=click.Path(path_type=Path), help="Write the numbers as CSV too."
)
def compare(
    records: tuple[Path, ...], targets: tuple[float, ...], runs: bool, table: Path | None
) -> None:
    """Tell which rounds, bytes and seconds runs needed to an accuracy, and where they ended.

    Runs that differ in their seed (and partition file) alone become one line: mean and standard
    deviation.
    """
    from mpi_ntkdfl.analysis import compare_text, traces
    from mpi_ntkdfl.analysis.compare import outcomes

    groups = traces.read(records)
    found = outcomes(groups, targets, runs)
    if table is not None:
        compare_text.write_csv(table, found)
    click.echo(compare_text.text(found))
    warn(traces.warnings(groups))


@click.command()
@RECORDS
@click.option(
    "-o",
    "--output",
    "target_file",
    metavar="FIGURE.(pdf|png|svg)",
    required=True,
    type=click.Path(path_type=Path),
    help="The figure to write.",
)
@click.option(
    "--x",
    "horizontal",
    type=click.Choice(["rounds", "bytes", "seconds"]),
    multiple=True,
    default=("rounds", "bytes", "seconds"),
    help="What to draw against, a panel each. Repeatable; default all.",
)
@click.option(
    "--y",
    "vertical",
    default="accuracy",
    show_default=True,
    help="What to draw.",
    type=click.Choice(["accuracy", "client-accuracy", "loss", "deviation", "gradient-norm"]),
)
@click.option("--ylim", type=float, nargs=2, metavar="LOW HIGH", help="Ends of the vertical axis.")
@click.option("--target", type=click.FloatRange(0, 1), help="Mark this accuracy.")
@click.option("--title", help="Above the panels.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Name in the legend; once for every configuration, in the order of their first records.",
)
def plot(
    records: tuple[Path, ...],
    target_file: Path,
    horizontal: tuple[str, ...],
    vertical: str,
    ylim: tuple[float, float] | None,
    target: float | None,
    title: str | None,
    labels: tuple[str, ...],
) -> None:
    """Draw runs: accuracy of the average against rounds, protocol bytes and seconds.

    Runs that differ in their seed (and partition file) alone become one line, with a band of one
    standard deviation.
    """
    from mpi_ntkdfl.analysis import plots, traces

    groups = traces.read(records)
    request = plots.Request(horizontal, vertical, ylim, target, title, labels)
    plots.write(target_file, groups, request)
    click.echo(target_file)
    warn(traces.warnings(groups))


@click.command()
@RECORD
@click.option("--client", type=click.IntRange(0), help="Export this client's weights.")
@click.option("--average", is_flag=True, help="Export the average of all clients.")
@click.argument("target", metavar="OUT.pt", type=click.Path(path_type=Path))
def export(record: Path, client: int | None, average: bool, target: Path) -> None:
    """Write weights from a run's checkpoint as a torch state_dict."""
    from mpi_ntkdfl.storage.checkpoint import export_weights, newest

    if (client is None) == (not average):
        raise click.UsageError("choose one of --client I and --average")
    with newest(Outputs(record)) as checkpoint:
        export_weights(checkpoint, client, target)
