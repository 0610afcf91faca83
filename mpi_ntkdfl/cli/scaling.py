"""The commands `scaling run`, `scaling report` and `scaling predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpi_ntkdfl import config, presets
from mpi_ntkdfl.cli.groups import Group, examples
from mpi_ntkdfl.cli.options import PLUGIN, RECORDS, SET, warn
from mpi_ntkdfl.cli.targets import OVERWRITE, TARGET, figure
from mpi_ntkdfl.comm.launcher import under_launcher
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.launching import launcher_words

if TYPE_CHECKING:
    from mpi_ntkdfl.analysis.scaling import Kind

_NETWORK = click.option(
    "--network",
    "network",
    default="shared-memory",
    show_default=True,
    help="10gbe, hdr100, hdr200, ndr (nominal), shared-memory, or ALPHA,BETA in s and bytes/s.",
)


@click.group(
    cls=Group,
    epilog=examples(
        "scaling run quickstart --ranks 1,2,4 --rounds 4 -o study",
        "scaling report study/strong-*.h5 -o scaling.pdf",
    ),
)
def scaling() -> None:
    """Run one configuration on several numbers of ranks, report, and predict."""


@scaling.command(
    epilog=examples(
        "scaling run quickstart --ranks 1,2,4 --rounds 4 -o study",
        "scaling run quickstart --kind weak --ranks 1,2 --set partition.samples=45 -o study",
    )
)
@click.argument("source", metavar="PRESET_OR_YAML")
@SET
@PLUGIN
@click.option(
    "--kind",
    type=click.Choice(["strong", "weak"]),
    default="strong",
    show_default=True,
    help="Strong: the same clients on more ranks. Weak: the same number of clients on every rank.",
)
@click.option(
    "--ranks", required=True, metavar="N,N,...", help="Numbers of ranks, such as 1,2,4,8."
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each run; the first is warm-up.")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="FOLDER",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the records KIND-RANKS.h5.",
)
@click.option(
    "--launcher",
    help='Command that starts ranks; by default "mpirun -n {ranks}" of this environment.',
)
def run(
    source: str,
    overrides: tuple[str, ...],
    plugin_files: tuple[str, ...],
    kind: Kind,
    ranks: str,
    rounds: int | None,
    folder: Path,
    launcher: str | None,
) -> None:
    """Do the runs of a scaling study, one launch after the other; the same command resumes the study.

    A strong study runs the source as it is on every number of ranks. In a weak one `clients` is the
    number of clients per rank: a run on R ranks has R times as many.
    """
    from mpi_ntkdfl.analysis import scaling_run

    if under_launcher():
        raise InputError("scaling run starts mpirun itself: start it without mpirun or srun")
    plugins.load(plugin_files)
    counts = _counts(ranks)
    more = [] if rounds is None else [{"rounds": rounds}]
    layers = [*presets.read_source(source), presets.read_overrides(overrides), *more]
    settings = config.parse(layers)
    planned = scaling_run.plan(settings, kind, counts)
    words = launcher_words(launcher)
    records = scaling_run.run(planned, kind, folder, words, click.echo)
    click.echo(f"python -m mpi_ntkdfl scaling report {' '.join(map(str, records))}")


def _counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise click.UsageError(f"--ranks takes positive numbers such as 1,2,4,8; got {text}")
    return [int(word) for word in words]


@scaling.command(
    epilog=examples("scaling report study/strong-*.h5 -o scaling.pdf --csv scaling.csv")
)
@RECORDS
@_NETWORK
@figure("Draw the figure.")
@click.option("--csv", "table", type=TARGET, help="Write the numbers as CSV.")
@OVERWRITE
def report(
    records: tuple[Path, ...], network: str, figure: Path | None, table: Path | None
) -> None:
    """Print speed-up, efficiencies, Amdahl's law, and the model beside the measurements."""
    from mpi_ntkdfl.analysis import scaling as analysis
    from mpi_ntkdfl.analysis import scaling_model, scaling_plot, scaling_text

    net = scaling_model.network(network)
    points = [analysis.read(path) for path in records]
    studies = analysis.studies(points)
    if table is not None:
        scaling_text.write_csv(table, studies)
    if figure is not None:
        scaling_plot.write(figure, studies)
    click.echo(scaling_text.text(studies, net))
    warn(analysis.warnings(points))


@scaling.command(
    epilog=examples(
        "scaling predict study/strong-1.h5 --ranks 1024 --clients 100000 --network hdr100"
    )
)
@RECORDS
@_NETWORK
@click.option("--ranks", type=click.IntRange(1), required=True, help="Ranks to predict for.")
@click.option("--clients", type=click.IntRange(1), help="Clients; default those of the records.")
def predict(records: tuple[Path, ...], network: str, ranks: int, clients: int | None) -> None:
    """Predict seconds and bytes of a round on other ranks, with other clients, over a network."""
    from mpi_ntkdfl.analysis import scaling as analysis
    from mpi_ntkdfl.analysis import scaling_model, scaling_text

    net = scaling_model.network(network)
    points = [analysis.read(path) for path in records]
    basis = scaling_model.model(points)
    predicted = scaling_model.predict(basis, ranks, clients or len(basis.sizes), net)
    click.echo(scaling_text.prediction(basis, predicted, network, net))
    warn(analysis.warnings(points))
