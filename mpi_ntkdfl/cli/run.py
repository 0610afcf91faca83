"""The commands that start MPI: `run` and `doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpi_ntkdfl import config
from mpi_ntkdfl.cli.failing import failing_together
from mpi_ntkdfl.cli.options import SET, SOURCE, read_config
from mpi_ntkdfl.comm.mpi import open_world
from mpi_ntkdfl.runtime import logs
from mpi_ntkdfl.runtime.stopping import UNFINISHED, watch_signals
from mpi_ntkdfl.storage.outputs import Outputs, choose

if TYPE_CHECKING:
    from mpi_ntkdfl.simulation import Outcome


@click.command()
@SOURCE
@SET
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record to write.")
@click.option("--resume", is_flag=True, help="Go on with an existing run, or start a new one.")
@click.option("--overwrite", is_flag=True, help="Replace an existing record and its checkpoints.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and the summary.")
def run(
    source: str,
    overrides: tuple[str, ...] = (),
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Run a preset or a YAML file; start it under mpirun or srun for several ranks.

    The record goes to RUN.h5 (-o; by default named after the configuration, with a number if the
    name is taken) and the weights of all clients to RUN.ckpt.h5 beside it.

    With --resume the run goes on from its newest checkpoint, with the same or another number of
    ranks, and ends with the same bits; where there is none it starts. So one command can be submitted
    again and again. SIGTERM, SIGUSR1 and output.time_limit end it after the running round with a
    checkpoint and exit code 75.
    """
    if resume and overwrite:
        raise click.UsageError("choose one of --resume and --overwrite")
    watch_signals()
    world = open_world()
    logs.set_up(world.rank, quiet)
    with failing_together(world):
        from mpi_ntkdfl import simulation
        from mpi_ntkdfl.cli import progress

        def decide() -> tuple[config.Config, Outputs]:
            found = read_config(source, overrides)
            return found, choose(output, Path(source).stem, resume)

        settings, outputs = world.on_root(decide)
        mode: simulation.Mode = "resume" if resume else "overwrite" if overwrite else "new"
        with progress.reporter(quiet or world.rank > 0) as report:
            outcome = simulation.run(settings, world, outputs, mode, report)
        if world.rank == 0:
            _say_goodbye(outputs, outcome)
    if not outcome.finished:
        sys.exit(UNFINISHED)


def _say_goodbye(outputs: Outputs, outcome: Outcome) -> None:
    from mpi_ntkdfl.analysis import tables

    if outcome.finished and outcome.first == outcome.done:
        click.echo(f"{outputs.record} is finished: {outcome.done} rounds; nothing to do")
        return
    ending = (
        f"finished: {outcome.done} rounds"
        if outcome.finished
        else f"stopped after round {outcome.done} of {outcome.rounds} ({outcome.reason}); the same "
        "command with --resume goes on"
    )
    click.echo(f"{tables.summary(tables.read(outputs.record))}\n\n{ending}\n")
    click.echo(f"record:  {outputs.record}")
    if outputs.checkpoint.exists():
        click.echo(f"weights: {outputs.checkpoint}")


@click.command()
def doctor() -> None:
    """Tell what MPI, launcher, nodes, GPUs, threads, HDF5 and data look like; works under mpirun."""
    from mpi_ntkdfl.cli import doctor as examination

    world = open_world()
    with failing_together(world):
        ranks = world.comm.gather(examination.this_rank(world.local_rank))
        if world.rank == 0:
            click.echo(examination.report(world, ranks))
