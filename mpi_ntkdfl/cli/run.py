"""The commands that start MPI: `run` and `doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from mpi_ntkdfl import config
from mpi_ntkdfl.cli.failing import failing_together, output_may_end
from mpi_ntkdfl.cli.groups import PROGRAM, examples
from mpi_ntkdfl.cli.options import PLUGIN, SET, SOURCE, read_config
from mpi_ntkdfl.comm.launcher import launched_rank, launched_size, not_all_started, under_launcher
from mpi_ntkdfl.comm.mpi import MpiWorld, open_world
from mpi_ntkdfl.metrics import SECONDS
from mpi_ntkdfl.runtime import logs, plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.stopping import (
    UNFINISHED,
    ignore_signals,
    limit_start,
    nothing_to_save,
    watch_parent,
    watch_signals,
)
from mpi_ntkdfl.runtime.units import duration
from mpi_ntkdfl.storage.outputs import Outputs, choose

START_LIMIT = 300.0
"""Seconds within which all ranks must have started MPI and read the configuration."""

if TYPE_CHECKING:
    from mpi_ntkdfl.analysis import tables
    from mpi_ntkdfl.simulation import Outcome


@click.command(
    epilog=examples(
        f"mpirun -n 4 {PROGRAM} run quickstart -o first.h5",
        "run quickstart --set topology.kind=ring --set rounds=20 -o ring.h5",
        f"mpirun -n 8 {PROGRAM} run mine.yaml -o mine.h5 --resume",
    )
)
@SOURCE
@SET
@PLUGIN
@click.option("-o", "--output", help="The record to write.")
@click.option("--resume", is_flag=True, help="Go on with an existing run, or start a new one.")
@click.option("--overwrite", is_flag=True, help="Replace an existing record and its checkpoints.")
@click.option(
    "--log",
    "logs_wanted",
    metavar="FILE.csv|FILE.jsonl|KIND:WHERE",
    multiple=True,
    help="Also write the numbers of every evaluated round to a file, or to tensorboard:FOLDER, "
    "wandb:PROJECT, mlflow:EXPERIMENT. Repeatable.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only warnings and the summary.")
def run(
    source: str,
    overrides: tuple[str, ...] = (),
    plugin_files: tuple[str, ...] = (),
    output: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    logs_wanted: tuple[str, ...] = (),
    quiet: bool = False,
) -> None:
    """Run a preset or a YAML file; start it under mpirun or srun for several ranks.

    The record goes to RUN.h5 (-o; by default named after the configuration, with a number if the
    name is taken) and the weights of all clients to RUN.ckpt.h5 beside it.

    With --resume the run goes on from its newest checkpoint, with the same or another number of ranks,
    and ends with the same bits. If there is no checkpoint, it starts. So the same command can be
    submitted again and again. Ctrl-C, SIGTERM, SIGUSR1, SIGHUP and output.time_limit end it after the
    running round with a checkpoint and exit code 75; a second signal ends it at once.
    """
    if resume and overwrite:
        raise click.UsageError("choose one of --resume and --overwrite")
    watch_signals(speaks=launched_rank() == 0)
    nothing_to_save(True)
    limit_start(START_LIMIT if launched_size() > 1 else None, not_all_started)
    if under_launcher():
        watch_parent()
    world = open_world()
    watch_signals(speaks=world.rank == 0)  # libraries of MPI may have handlers of their own
    logs.set_up(world.rank, quiet)
    with failing_together(world):
        world.require_one_package()
        from mpi_ntkdfl import loggers, simulation
        from mpi_ntkdfl.cli import progress

        _load_plugins(world, plugin_files)

        def decide() -> tuple[config.Config, Outputs]:
            parsed = read_config(source, overrides)
            wanted = None if output is None else user_path(output, "-o")
            listeners.extend(loggers.forgiving(loggers.logger(word)) for word in logs_wanted)
            return parsed, choose(wanted, Path(source).stem, resume)

        listeners: list[loggers.Callback] = []  # on rank 0, because only rank 0 reports
        settings, outputs = world.on_root(decide)
        mode: simulation.Mode = "resume" if resume else "overwrite" if overwrite else "new"
        with world.watched(settings.compute.patience, settings.output.seconds):
            with progress.reporter(quiet or world.rank > 0) as report:
                report_all = loggers.all_of([report, *listeners])
                outcome = simulation.run(settings, world, outputs, mode, report_all)
            ignore_signals()  # those that echo the one that stopped the run
            if world.rank == 0:
                with output_may_end():
                    _say_goodbye(outputs, outcome)
    if not outcome.finished:
        sys.exit(UNFINISHED)


def _load_plugins(world: MpiWorld, files: tuple[str, ...]) -> None:
    """Loads the same plugins on every rank.

    Raises:
        InputError: on every rank, if a file fails or is not the same on all ranks.
    """
    mine = world.agree(lambda: plugins.load(files))
    first = world.on_root(lambda: mine)

    def require_same() -> None:
        for file, own, other in zip(files, mine, first, strict=True):
            if own != other:
                raise InputError(
                    f"--plugin: all ranks must run the same file, but {file} is another one on "
                    f"{world.hosts[world.rank]} (rank {world.rank}) than on {world.hosts[0]} (rank 0)"
                )

    world.agree(require_same)


def _say_goodbye(outputs: Outputs, outcome: Outcome) -> None:
    from mpi_ntkdfl.analysis import live, tables

    if outcome.finished and outcome.first == outcome.done:
        click.echo(f"{outputs.record} is finished: {outcome.done} rounds; nothing to do")
        return
    run = tables.read(outputs.record)
    ending = (
        f"stopped after round {outcome.done} of {outcome.rounds} ({outcome.reason}); the same "
        "command with --resume goes on"
    )
    if outcome.finished:
        ending = live.finished(outcome.done, outcome.rounds, run.config.get("stop_at"))
    elif outcome.first == outcome.done:
        ending += f"\n{_no_round(run, outcome.done)}"
    click.echo(f"{tables.summary(run)}\n\n{ending}\n")
    click.echo(f"record:  {outputs.record}")
    if outputs.checkpoint.exists():
        click.echo(f"weights: {outputs.checkpoint}")


def _no_round(run: tables.Run, done: int) -> str:
    """What to do about a start that was stopped before it finished a round."""
    took = ""
    if done:
        took = f" (round {done} took {duration(float(np.nanmax(run[SECONDS][-1].sum(axis=1))))})"
    return (
        "this start finished no round: its time limit is too short for the start-up and one round"
        f"{took}; give each start more time"
    )


@click.command(epilog=examples("doctor", f"mpirun -n 4 {PROGRAM} doctor"))
def doctor() -> None:
    """Print what MPI, launcher, nodes, GPUs, threads, HDF5 and data look like; it works under mpirun."""
    from mpi_ntkdfl.cli import doctor as examination

    limit_start(START_LIMIT if launched_size() > 1 else None, not_all_started)
    world = open_world()
    with failing_together(world):
        world.require_one_package()
        ranks = world.comm.gather(examination.this_rank(world.local_rank))
        limit_start(None)
        if world.rank == 0:
            click.echo(examination.report(world, ranks))
