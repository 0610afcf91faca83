"""The command `submit`: makes a batch script of a run."""

from __future__ import annotations

from pathlib import Path

import click

from mpi_ntkdfl.cli.groups import examples
from mpi_ntkdfl.cli.options import PLUGIN, SET, SOURCE, read_config
from mpi_ntkdfl.runtime import logs, plugins


@click.command(
    epilog=examples(
        "submit quickstart -o /scratch/me/first.h5 --ranks 4 --time 0:10:00",
        "submit mine.yaml -o mine.h5 --nodes 2 --ranks 96 --time 4:00:00 --submit",
    )
)
@SOURCE
@SET
@PLUGIN
@click.option(
    "-o", "--output", metavar="RUN.h5", help="The record, on a file system that all nodes share."
)
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes.")
@click.option("--ranks", type=click.IntRange(1), required=True, help="Ranks on all nodes together.")
@click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs per node; default none.")
@click.option("--time", required=True, metavar="H:MM:SS", help="Time limit of one start.")
@click.option("--account", help="Account to charge.")
@click.option("--partition", help="Partition to run in.")
@click.option(
    "--template",
    metavar="run_cpu|run_gpu|FILE",
    help="The script to fill; default run_gpu with --gpus, else run_cpu.",
)
@click.option(
    "--submit/--print", "send", default=False, help="Submit the script, or print it (default)."
)
def submit(
    source: str,
    overrides: tuple[str, ...],
    plugin_files: tuple[str, ...],
    output: str | None,
    nodes: int,
    ranks: int,
    gpus: int,
    time: str,
    account: str | None,
    partition: str | None,
    template: str | None,
    send: bool,
) -> None:
    """Make a Slurm batch script of a run, checked beforehand, and print or submit it.

    The job ends its run with a checkpoint before the time limit, requeues itself and goes on. The cores
    per rank are compute.threads. Relative paths are relative to the folder in which sbatch is called.
    """
    from mpi_ntkdfl.assembly import prepare
    from mpi_ntkdfl.cli import batch_script as slurm

    logs.set_up(0, quiet=True)
    plugins.load(plugin_files)
    settings = read_config(source, overrides)
    words = [source, *(word for each in overrides for word in ("--set", each))]
    words += [word for each in plugin_files for word in ("--plugin", each)]
    request = slurm.Request(
        name=Path(source).stem,
        words=(*words, *(("-o", output) if output else ())),
        nodes=nodes,
        ranks=ranks,
        threads=settings.compute.threads,
        gpus=gpus,
        time=time,
        account=account,
        partition=partition,
    )
    text = slurm.script(template or ("run_gpu" if gpus else "run_cpu"), request)
    prepare(settings, ranks)
    click.echo(f"submitted job {slurm.sbatch(text)}" if send else text, nl=send)
