"""The command line: parses, sets up logging, calls, and turns failures into messages and exit codes.

Exit codes: 0 done, 1 the computation failed, 2 bad input, 75 stopped early with a checkpoint. Heavy
imports happen inside the commands that need them, so that `presets` and `show` answer at once and only
`run` and `doctor` start MPI.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from mpi_ntkdfl import __version__, config
from mpi_ntkdfl.cli.scaling import scaling
from mpi_ntkdfl.cli.study import study
from mpi_ntkdfl.comm.mpi import Elsewhere, MpiWorld, launched_rank, open_world
from mpi_ntkdfl.runtime import logs
from mpi_ntkdfl.runtime.errors import InputError, MpiNtkdflError
from mpi_ntkdfl.runtime.launching import usable_cores
from mpi_ntkdfl.runtime.stopping import UNFINISHED, watch_signals
from mpi_ntkdfl.runtime.units import readable
from mpi_ntkdfl.storage.outputs import Outputs, choose

if TYPE_CHECKING:
    from mpi_ntkdfl.assembly import Problem
    from mpi_ntkdfl.simulation import Outcome

_SOURCE = click.argument("source", metavar="PRESET_OR_YAML", default="quickstart")
_SET = click.option(
    "--set",
    "overrides",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    help="Override one setting; the value is read as YAML. Repeatable.",
)
_RECORD = click.argument("record", metavar="RUN.h5", type=click.Path(path_type=Path))
_RECORDS = click.argument(
    "records", metavar="RUN.h5...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def main() -> NoReturn:
    """Entry point of `python -m mpi_ntkdfl`; never returns."""
    try:
        code = cli.main(standalone_mode=False, prog_name="python -m mpi_ntkdfl")
    except click.ClickException as error:
        # Every rank parses the same words; one message is enough.
        if launched_rank() == 0:
            error.show()
        code = error.exit_code
    except InputError as error:
        # Before MPI starts every rank meets the same error; afterwards one has it, others `Elsewhere`.
        if not isinstance(error, Elsewhere) and (error.agreed or launched_rank() == 0):
            _complain(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mpi_ntkdfl")
@click.pass_context
def cli(context: click.Context) -> None:
    r"""Decentralized federated learning with neural tangent kernels, on MPI ranks.

    Without a command: run quickstart.

    \b
        mpirun -n 4 python -m mpi_ntkdfl
        mpirun -n 32 python -m mpi_ntkdfl run paper-fashion-mnist -o paper.h5
    """
    if context.invoked_subcommand is None:
        context.invoke(run, source="quickstart")


cli.add_command(scaling)
cli.add_command(study)

# ------------------------------------------------------------------------------------------- running


@cli.command()
@_SOURCE
@_SET
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
    with _failing_together(world):
        from mpi_ntkdfl import simulation
        from mpi_ntkdfl.cli import progress

        def decide() -> tuple[config.Config, Outputs]:
            found = _read(source, overrides)
            return found, choose(output, Path(source).stem, resume)

        settings, outputs = world.on_root(decide)
        mode: simulation.Mode = "resume" if resume else "overwrite" if overwrite else "new"
        with progress.reporter(quiet or world.rank > 0) as report:
            outcome = simulation.run(settings, world, outputs, mode, report)
        if world.rank == 0:
            _say_goodbye(outputs, outcome)
    if not outcome.finished:
        sys.exit(UNFINISHED)


@cli.command()
@_SOURCE
@_SET
@click.option("--ranks", type=click.IntRange(1), default=1, help="Ranks to plan for.")
@click.option(
    "--measure/--no-measure",
    default=True,
    help="Seconds by this machine's speed, or a nominal one.",
)
def check(source: str, overrides: tuple[str, ...], ranks: int, measure: bool) -> None:
    """Validate a configuration with its data and print the plan; starts no MPI."""
    from mpi_ntkdfl.assembly import prepare

    logs.set_up(0, quiet=False)
    settings = _read(source, overrides)
    problem = prepare(settings, ranks)
    click.echo(_plan_text(settings, problem, ranks))
    click.echo(_seconds_text(settings, problem, measure))


@cli.command()
@_SOURCE
@_SET
@click.option(
    "-o", "--output", metavar="RUN.h5", help="The record; on a file system all nodes share."
)
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes.")
@click.option("--ranks", type=click.IntRange(1), required=True, help="Ranks, all nodes together.")
@click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs a node; default none.")
@click.option("--time", required=True, metavar="H:MM:SS", help="Limit of one start.")
@click.option("--account", help="To charge.")
@click.option("--partition", help="To run in.")
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

    The job ends its run with a checkpoint before the time limit, requeues itself and goes on. Cores a
    rank are compute.threads. Relative paths are relative to where sbatch is called.
    """
    from mpi_ntkdfl.assembly import prepare
    from mpi_ntkdfl.cli import batch_script as slurm

    logs.set_up(0, quiet=True)
    settings = _read(source, overrides)
    words = [source, *(word for each in overrides for word in ("--set", each))]
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


@cli.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the presets, or print one as YAML."""
    if name is not None:
        click.echo(config.preset_text(name), nl=False)
        return
    names = config.preset_names()
    width = max(map(len, names)) + 2
    for each in names:
        click.echo(f"{each:{width}}{config.preset_text(each).splitlines()[0].removeprefix('# ')}")


# ----------------------------------------------------------------------------------- looking at runs


@cli.command()
@_RECORD
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


@cli.command()
@_RECORDS
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
    _warn(traces.warnings(groups))


@cli.command()
@_RECORDS
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
    _warn(traces.warnings(groups))


@cli.command()
@_RECORD
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


# ---------------------------------------------------------------------------------- data and machine


@cli.group()
def data() -> None:
    """List, download or locate data sets."""


@data.command("list")
def data_list() -> None:
    """List the data sets and where they are."""
    from mpi_ntkdfl.data import sources

    for e in sources.catalogue():
        size = f"{e.train_samples} + {e.test_samples} samples, {e.features} features, {e.classes} classes"
        click.echo(f"{e.name:16}{size}\n{'':16}{'found: ' if e.found else ''}{e.where}")


@data.command("fetch")
@click.argument("name")
def data_fetch(name: str) -> None:
    """Download a data set into the cache folder, checked by hash."""
    from mpi_ntkdfl.data import sources

    click.echo(sources.fetch(name))


@data.command("path")
@click.argument("name")
def data_path(name: str) -> None:
    """Print where the files of a data set are."""
    from mpi_ntkdfl.data import sources

    settings = config.dataset_settings(name)
    files = sources.locate(settings)
    if not files:
        click.echo(f"{name} comes inside scikit-learn and has no file of its own")
    for path in files.values():
        click.echo(path)


@cli.command()
def doctor() -> None:
    """Tell what MPI, launcher, nodes, GPUs, threads, HDF5 and data look like; works under mpirun."""
    from mpi_ntkdfl.cli import doctor as examination

    world = open_world()
    with _failing_together(world):
        ranks = world.comm.gather(examination.this_rank(world.local_rank))
        if world.rank == 0:
            click.echo(examination.report(world, ranks))


# -------------------------------------------------------------------------------------------- helpers


def _read(source: str, overrides: tuple[str, ...]) -> config.Config:
    from mpi_ntkdfl.algorithms import METHODS

    layers = [*config.read_source(source), config.read_overrides(overrides)]
    return config.parse(layers, {name: method.Settings for name, method in METHODS.items()})


@contextlib.contextmanager
def _failing_together(world: MpiWorld) -> Iterator[None]:
    """Ends all ranks when one fails, with its message; lets agreed bad input pass to `main`."""
    try:
        yield
    except InputError as error:
        if not (error.agreed or world.size == 1):
            _complain(error, world.rank)
            world.abort(error.exit_code)
        raise
    except (Exception, KeyboardInterrupt) as error:
        _complain(error, world.rank)
        if world.size > 1:
            world.abort(1)
        sys.exit(1)


def _complain(error: BaseException, rank: int | None = None) -> None:
    """Prints one message; a traceback only for what should not happen."""
    if not isinstance(error, MpiNtkdflError):
        traceback.print_exception(error)
    where = [f"rank {rank}"] if rank is not None else []
    where += dict.fromkeys(getattr(error, "__notes__", []))  # both method and loop name the round
    message = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"error: {message}" + (f" ({', '.join(where)})" if where else ""), err=True)
    sys.stderr.flush()


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"warning: {line}", err=True)


def _plan_text(settings: config.Config, problem: Problem, ranks: int) -> str:
    from mpi_ntkdfl.algorithms.steps import evolves
    from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES

    plan, sizes = problem.plan, problem.partition.sizes
    lines = [
        f"{settings.algorithm.name} on {settings.dataset.name}: {settings.clients} clients with "
        f"{sizes.min()} to {sizes.max()} samples, {settings.rounds} rounds, {ranks} ranks",
        f"model: {' - '.join(map(str, problem.network.widths))}, {plan.params} parameters",
        f"graph: {settings.topology.kind}, {len(problem.schedule.graph(0).edges)} edges in round 0, "
        f"largest neighbourhood {plan.largest} samples",
    ]
    if plan.waves:
        slices = f", in slices of {plan.slices} parameters" if plan.slices else ""
        lines.append(f"exchanges of Jacobians a round: {plan.waves} waves{slices}")
    lines.append("bytes in round 0, all clients:")
    for phase, protocol, moved in zip(TRAFFIC_PHASES, *plan.traffic, strict=True):
        if protocol:
            lines.append(f"  {phase:12}{readable(protocol):>10} protocol{readable(moved):>10} MPI")
    protocol, moved = plan.traffic.sum(axis=1)
    lines.append(f"  {'total':12}{readable(protocol):>10} protocol{readable(moved):>10} MPI")
    if evolves(settings.algorithm):
        lines.append(f"evolution: {_evolution_text(settings)}")
    lines.append("memory of the largest rank:")
    lines += [f"  {purpose:22}{readable(count):>10}" for purpose, count in plan.memory.items()]
    lines.append(f"  {'total':22}{readable(sum(plan.memory.values())):>10}")
    return "\n".join(lines)


def _evolution_text(settings: config.Config) -> str:
    """What would evolve outputs on this machine."""
    import torch

    from mpi_ntkdfl.ntk.evolve import unavailable
    from mpi_ntkdfl.runtime import device

    asked = settings.compute.evolution
    chosen = device.choose(settings.compute.device, 0)
    reason = unavailable(chosen, getattr(torch, settings.compute.dtype))
    if asked == "tensor":
        return "tensor, as asked"
    if not reason:
        return "compiled"
    if asked == "compiled":
        raise InputError(f"compute.evolution: compiled, but it is not here: {reason}")
    return f"tensor; not compiled: {reason}"


def _seconds_text(settings: config.Config, problem: Problem, measured: bool) -> str:
    machine, cores = problem.machine(settings, measured), len(usable_cores())
    found = problem.round_seconds(settings, machine, cores)
    speed = "as measured just now" if measured else "nominal"
    lines = [
        f"seconds a round, predicted for CPUs that do nothing else ({speed}: "
        f"{machine.peak / 1e9:.0f} Gflop/s, {machine.bandwidth / 1e9:.0f} GB/s a thread):"
    ]
    lines += [f"  {phase:12}{seconds:>10.3f} s" for phase, seconds in found.items()]
    lines.append(f"  {'total':12}{sum(found.values()):>10.3f} s")
    threads = problem.placement.ranks * settings.compute.threads
    if threads > cores:
        lines.append(f"  {threads} threads share {cores} cores; on more hosts it is faster")
    return "\n".join(lines)


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
