"""The command `audit`: what a curious neighbour reconstructs from the messages of a run."""

from __future__ import annotations

from pathlib import Path

import click

from mpi_ntkdfl.cli.groups import examples
from mpi_ntkdfl.cli.options import PLUGIN, RECORDS
from mpi_ntkdfl.cli.targets import OVERWRITE, figure
from mpi_ntkdfl.runtime import logs, plugins
from mpi_ntkdfl.storage.outputs import Outputs


@click.command(
    epilog=examples(
        "audit first.h5 -o audit.png",
        'audit first.h5 --as jacobian=dense --as "{jacobian: projected, projection: 64}"',
    )
)
@RECORDS
@click.option(
    "--clients", type=click.IntRange(1), default=4, show_default=True, help="Senders to attack."
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Samples of each sender to attack.",
)
@click.option(
    "--round", "number", type=click.IntRange(0), help="Round, from 0; default: the last possible."
)
@click.option(
    "--as",
    "forms",
    metavar="KEY=VALUE",
    multiple=True,
    help="Attack the messages that this setting of `algorithm` gives, instead of those that were sent. "
    "Repeatable, one attack each.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Steps of gradient matching per sample.",
)
@click.option(
    "--matching",
    is_flag=True,
    help="Prefer gradient matching to the attacks that need linear layers.",
)
@figure("Also draw originals above reconstructions.")
@OVERWRITE
@PLUGIN
def audit(
    records: tuple[Path, ...],
    clients: int,
    samples: int,
    number: int | None,
    forms: tuple[str, ...],
    steps: int,
    matching: bool,
    figure: Path | None,
    plugin_files: tuple[str, ...],
) -> None:
    """Reconstruct samples from the messages of a run, as a curious neighbour can, and compare.

    The messages of a round are computed again from the run's checkpoint. The run may be finished or go
    on. The result is no proof of privacy.
    """
    from mpi_ntkdfl.audit import picture, report

    logs.set_up(0, quiet=False)
    plugins.load(plugin_files)
    audits = []
    for record in records:
        for form in forms or ("",):
            word = f"algorithm={form}" if form.startswith("{") else f"algorithm.{form}"
            overrides = (word,) if form else ()
            outputs = Outputs.at(record)
            audits.append(
                report.audit(outputs, clients, samples, number, overrides, steps, matching)
            )
    click.echo(report.text(audits))
    if figure is not None:
        picture.write(figure, audits)
        click.echo(figure)
