"""The commands that read records: `show`, `compare`, `plot`, `export`, `kernel`."""

from __future__ import annotations

from pathlib import Path

import click

from mpi_ntkdfl.cli.groups import examples
from mpi_ntkdfl.cli.options import ACCURACY_RANGE, PLUGIN, RECORD, RECORDS, Range, warn
from mpi_ntkdfl.cli.targets import OVERWRITE, TARGET, figure
from mpi_ntkdfl.metrics import ACCURACY, Place, at
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.storage.outputs import Outputs


def _names(place: Place) -> str:
    return ", ".join(metric.name for metric in at(place))


@click.command(epilog=examples("show first.h5", "show first.h5 --follow"))
@RECORD
@click.option(
    "--follow", is_flag=True, help="Keep watching, one line per evaluation, until the end."
)
@click.option(
    "--interval", type=Range(0.1), default=2.0, help="Seconds between two reads; default 2."
)
def show(record: Path, follow: bool, interval: float) -> None:
    """Print what ran, the final numbers, the traffic, and the time by phase.

    It works for finished, running and killed runs.
    """
    from mpi_ntkdfl.analysis import live, tables

    outputs = Outputs.at(record)
    if follow:
        for line in live.follow(outputs, interval):
            click.echo(line)
    run, status = live.read(outputs)
    click.echo(f"{tables.summary(run)}\n\n{status}")


@click.command(
    epilog=examples(
        "compare *.h5 --target 0.8 --target 0.85",
        "compare first.h5 other.h5 --runs --csv numbers.csv",
    )
)
@RECORDS
@click.option(
    "--target",
    "targets",
    type=ACCURACY_RANGE,
    multiple=True,
    default=(0.85,),
    show_default=True,
    help="Target accuracy of the average. Repeatable.",
)
@click.option("--runs", is_flag=True, help="List every run below its configuration.")
@click.option("--csv", "table", type=TARGET, help="Also write the numbers as CSV.")
@OVERWRITE
def compare(
    records: tuple[Path, ...], targets: tuple[float, ...], runs: bool, table: Path | None
) -> None:
    """Print the rounds, bytes and seconds that runs needed to an accuracy, and where they ended.

    Runs that differ only in their seed (and partition file) become one line: mean and standard
    deviation. Checkpoints among the files are left out.
    """
    from mpi_ntkdfl.analysis import compare_text, fairness, tables, traces
    from mpi_ntkdfl.analysis.compare import outcomes

    kept, passed = tables.without_checkpoints(records)
    groups = traces.read(kept)
    lines = outcomes(groups, targets, runs)
    if table is not None:
        compare_text.write_csv(table, lines)
    click.echo(compare_text.text(lines))
    warn([*passed, *fairness.warnings(groups)])


@click.command(
    epilog=examples(
        "plot *.h5 -o figure.pdf --target 0.85",
        "plot *.h5 -o loss.svg --x rounds --y loss",
        "plot first.h5 -o round-3.pdf --timeline 3",
    )
)
@RECORDS
@figure("The figure to write.", required=True)
@OVERWRITE
@click.option(
    "--x",
    "horizontal",
    metavar="METRIC",
    multiple=True,
    help=f"What to draw against, one panel each: {_names('x')}. Repeatable; the default is "
    f"{_names('panel')}.",
)
@click.option(
    "--y",
    "vertical",
    metavar="METRIC",
    default=ACCURACY.name,
    show_default=True,
    help=f"What to draw: {_names('y')}, or another metric of the records.",
)
@click.option("--ylim", type=float, nargs=2, metavar="LOW HIGH", help="Ends of the vertical axis.")
@click.option("--target", type=ACCURACY_RANGE, help="Mark this accuracy.")
@click.option(
    "--percentiles",
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    help="Band of these percentiles of clients, such as 10 90, for a metric of clients; the default band "
    "is one standard deviation over seeds.",
)
@click.option("--title", help="Title above the panels.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Name in the legend; once for every configuration, in the order of their first records.",
)
@click.option(
    "--timeline",
    "number",
    type=click.IntRange(1),
    metavar="ROUND",
    help="Draw what every rank did in this round instead; needs output.trace.",
)
@click.option(
    "--partition",
    "shares_only",
    is_flag=True,
    help="Draw how many samples of each class every client has instead.",
)
def plot(
    records: tuple[Path, ...],
    figure: Path,
    horizontal: tuple[str, ...],
    vertical: str,
    ylim: tuple[float, float] | None,
    target: float | None,
    percentiles: tuple[float, float] | None,
    title: str | None,
    labels: tuple[str, ...],
    number: int | None,
    shares_only: bool,
) -> None:
    """Draw runs: accuracy of the average against rounds, protocol bytes and seconds.

    Runs that differ only in their seed (and partition file) become one line, with a band of one
    standard deviation. Checkpoints among the files are left out.
    """
    from mpi_ntkdfl.analysis import fairness, plots, shares, tables, timeline, traces

    if shares_only:
        if len(records) > 1 or number is not None:
            raise click.UsageError("--partition draws one run, and is not given with --timeline")
        shares.write(figure, shares.read(records[0]), title)
        click.echo(figure)
        return
    if number is not None:
        if len(records) > 1:
            raise click.UsageError("--timeline draws one run, got several records")
        timeline.write(figure, timeline.read(Outputs(records[0]).trace, number))
        click.echo(figure)
        return
    kept, passed = tables.without_checkpoints(records)
    groups = traces.read(kept)
    request = plots.Request(horizontal, vertical, ylim, target, title, labels, percentiles)
    plots.write(figure, groups, request)
    click.echo(figure)
    warn([*passed, *fairness.warnings(groups)])


@click.command(
    epilog=examples("export first.h5 --average weights.pt", "export first.h5 --client 3 three.pt")
)
@RECORD
@click.option("--client", type=click.IntRange(0), help="Export this client's weights.")
@click.option("--average", is_flag=True, help="Export the average of all clients.")
@OVERWRITE
@click.argument("target", metavar="OUT.pt", type=TARGET)
def export(record: Path, client: int | None, average: bool, target: Path) -> None:
    """Write weights from a run's checkpoint as a torch state_dict."""
    import torch

    from mpi_ntkdfl.analysis.files import replacing, require_suffix
    from mpi_ntkdfl.storage.checkpoint import newest, state_dict
    from mpi_ntkdfl.storage.identity import require_record_of

    if (client is None) == (not average):
        raise click.UsageError("choose one of --client I and --average")
    require_suffix(target, "pt", "pth")
    outputs = Outputs.at(record)
    with newest(outputs) as checkpoint:
        require_record_of(outputs, checkpoint)
        weights = state_dict(checkpoint, client)
    with replacing(target) as made, made.open("wb") as file:
        torch.save(weights, file)


@click.command(
    epilog=examples(
        "kernel first.h5 --client 3",
        "kernel first.h5 --client 3 --neighbourhood -o kernel.pdf --csv kernel.csv",
    )
)
@RECORD
@click.option("--client", type=click.IntRange(0), default=0, help="Whose kernel; default 0.")
@click.option(
    "--neighbourhood",
    is_flag=True,
    help="Take the samples of the client and its neighbours in the last round, at the average of their "
    "weights.",
)
@figure("Draw the spectra.")
@click.option("--csv", "table", type=TARGET, help="Write eigenvalues and labels as CSV.")
@PLUGIN
@OVERWRITE
def kernel(
    record: Path,
    client: int,
    neighbourhood: bool,
    figure: Path | None,
    table: Path | None,
    plugin_files: tuple[str, ...],
) -> None:
    """Print the spectrum of a client's neural tangent kernel, and how it changed.

    The kernel of the client's training samples is computed at the starting weights, and at the weights
    of the last two rounds.
    """
    from mpi_ntkdfl.studies import kernels
    from mpi_ntkdfl.studies.loaded import load

    plugins.load(plugin_files)
    diagnosis = kernels.diagnose(load(Outputs.at(record)), client, neighbourhood)
    click.echo(kernels.text(diagnosis))
    if table is not None:
        kernels.write_csv(table, diagnosis)
    if figure is not None:
        kernels.write_figure(figure, diagnosis)
