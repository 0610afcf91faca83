"""The commands `check` and `presets`: what a configuration says, and what its run will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mpi_ntkdfl import presets as preset_files
from mpi_ntkdfl.cli.groups import examples
from mpi_ntkdfl.cli.options import MEASURE, PLUGIN, SET, SOURCE, read_config
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.runtime import logs, plugins
from mpi_ntkdfl.runtime.limits import usable_cores
from mpi_ntkdfl.runtime.units import duration, readable

if TYPE_CHECKING:
    from mpi_ntkdfl import config
    from mpi_ntkdfl.assembly import Problem
    from mpi_ntkdfl.planning.first_round import FirstRound
    from mpi_ntkdfl.planning.versions import Version


@click.command(
    epilog=examples("check quickstart", "check paper-fashion-mnist --ranks 32 --set clients=100")
)
@SOURCE
@SET
@PLUGIN
@click.option("--ranks", type=click.IntRange(1), default=1, help="Ranks to plan for.")
@MEASURE
def check(
    source: str,
    overrides: tuple[str, ...],
    plugin_files: tuple[str, ...],
    ranks: int,
    measure: bool,
) -> None:
    """Validate a configuration with its data and print the plan; starts no MPI."""
    from mpi_ntkdfl.assembly import prepare
    from mpi_ntkdfl.comm.world import SoloWorld
    from mpi_ntkdfl.planning.versions import agreed_versions, compiled_phases
    from mpi_ntkdfl.runtime import device

    logs.set_up(0, quiet=False)
    plugins.load(plugin_files)
    settings = read_config(source, overrides)
    problem = prepare(settings, ranks)
    chosen = device.choose(settings.compute.device, 0)
    versions = agreed_versions(settings, SoloWorld(), problem.network, chosen, problem.first.dtype)
    click.echo(_plan_text(settings, problem, ranks, versions))
    basis = problem.machine(measure), len(usable_cores()), compiled_phases(versions)
    by_phase, machine = problem.round_seconds(*basis), basis[0]
    speed = "as measured just now" if measure else "nominal"
    click.echo(_seconds_text(settings, problem, by_phase, f"{speed}: {machine.words}"))
    click.echo(_advice(by_phase, *problem.rarer_tests(*basis)), nl=False)
    simulated = _simulated(settings, problem)
    if simulated:
        click.echo(simulated.text)
    click.echo(_totals_text(settings, problem, sum(by_phase.values()), simulated))
    for metric in METRICS.values():
        if metric.measure is not None:
            click.echo(f"registered metric, at every evaluation: {metric.name} ({metric.label})")


@click.command(epilog=examples("presets", "presets quickstart > mine.yaml"))
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the presets, or print one as YAML."""
    if name is not None:
        click.echo(preset_files.text(name), nl=False)
        return
    names = preset_files.names()
    width = max(map(len, names)) + 2
    for each in names:
        click.echo(f"{each:{width}}{preset_files.text(each).splitlines()[0].removeprefix('# ')}")


def _plan_text(
    settings: config.Config, problem: Problem, ranks: int, versions: Mapping[str, Version]
) -> str:
    from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES

    plan, sizes = problem.plan, problem.partition.sizes
    lines = [
        f"{settings.algorithm.name} on {settings.dataset.name}: {settings.clients} clients with "
        f"{sizes.min()} to {sizes.max()} samples, {settings.rounds} rounds, {ranks} ranks",
        f"model: {problem.network.describe()}, {plan.params} parameters",
        f"graph: {settings.topology.kind}, {len(problem.schedule.graph(0).edges)} edges in round 0, "
        f"largest neighbourhood {plan.largest} samples",
    ]
    if plan.waves:
        slices = f", in slices of {plan.slices} parameters" if plan.slices else ""
        lines.append(f"exchanges of Jacobians per round: {plan.waves}{slices}")
    lines.append("bytes in round 0, all clients:")
    for phase, protocol, moved in zip(TRAFFIC_PHASES, *plan.traffic, strict=True):
        if protocol:
            lines.append(f"  {phase:12}{readable(protocol):>10} protocol{readable(moved):>10} MPI")
    protocol, moved = plan.traffic.sum(axis=1)
    lines.append(f"  {'total':12}{readable(protocol):>10} protocol{readable(moved):>10} MPI")
    lines.append(problem.first.needs.learned)
    lines += [f"{name} on this machine: {', '.join(each)}" for name, each in versions.items()]
    lines.append("memory of the largest rank:")
    lines += [f"  {purpose:22}{readable(count):>10}" for purpose, count in plan.memory.items()]
    lines.append(f"  {'total':22}{readable(sum(plan.memory.values())):>10}")
    return "\n".join(lines)


def _seconds_text(
    settings: config.Config, problem: Problem, by_phase: dict[str, float], speed: str
) -> str:
    from mpi_ntkdfl.algorithms.base import Method

    cores = len(usable_cores())
    lines = [f"seconds per round, predicted for CPUs without other work ({speed}):"]
    lines += [f"  {phase:12}{seconds:>10.3f} s" for phase, seconds in by_phase.items()]
    lines.append(f"  {'total':12}{sum(by_phase.values()):>10.3f} s")
    if problem.first.method.work.__func__ is Method.work.__func__:  # type: ignore[attr-defined]
        lines.append("  without the steps of the method, which does not count them (Method.work)")
    if "kernel" in problem.network.choices:  # a module of torch
        lines.append("  small layers and batches of a module of torch may take ten times as long")
    threads = problem.placement.ranks * settings.compute.threads
    if threads > cores:
        lines.append(f"  {threads} threads share {cores} cores; on more hosts it is faster")
    return "\n".join(lines)


def _advice(by_phase: dict[str, float], setting: str, less: float) -> str:
    """A line about the setting with which the evaluation takes the share `less`; nothing without one."""
    if not setting:
        return ""
    share = by_phase["evaluate"] / sum(by_phase.values())
    return (
        f"  {100 * share:.0f} % of a round is evaluation, {100 * less:.0f} % with {setting}; "
        "weights stay the same\n"
    )


@dataclass(frozen=True)
class _Simulated:
    """Simulated time before a run.

    Attributes:
        text: about one round.
        run: seconds of all rounds.
    """

    text: str
    run: float


def _simulated(settings: config.Config, problem: Problem) -> _Simulated | None:
    """Predicts the simulated time, if the configuration has an environment."""
    from mpi_ntkdfl.planning.forecast import forecast

    if problem.conditions is None or settings.environment is None:
        return None
    environment, first = settings.environment, problem.first
    told = forecast(first, problem.conditions)
    lines = [
        f"simulated seconds of round 0, if all clients take part ({environment.waiting.kind}):",
        *(f"  {part:12}{seconds:>10.3f} s" for part, seconds in told.parts.items()),
        f"  {'total':12}{told.seconds:>10.3f} s",
        "  slowest client: {}, busy for {:.3f} s; parts are those of the mean client".format(
            *told.slowest
        ),
    ]
    if told.late:
        lines.append(f"  {told.late} of {told.messages} messages are late")
    later = told.seconds
    if first.needs.samples and settings.lasting:
        later = forecast(first, problem.conditions, kept=True).seconds
        lines.append(f"  later rounds, in which clients have the samples: {later:.3f} s")
    return _Simulated("\n".join(lines), told.seconds + (settings.rounds - 1) * later)


def _totals_text(
    settings: config.Config, problem: Problem, seconds: float, simulated: _Simulated | None
) -> str:
    """What the whole run will take, if all its rounds are like the first one."""
    from mpi_ntkdfl.planning.costs import START_UP, disk_bytes

    rounds, ranks = settings.rounds, problem.placement.ranks
    plan = problem.plan
    whole = plan.traffic.sum(axis=1) + (rounds - 1) * plan.later.sum(axis=1)
    protocol, moved = (int(count) for count in whole)
    wall = START_UP + rounds * seconds
    used = min(ranks * settings.compute.threads, len(usable_cores()))
    return "\n".join(
        [
            f"whole run, {rounds} rounds, about:",
            f"  {'traffic':12}{readable(protocol):>10} protocol{readable(moved):>10} MPI",
            f"  {'time':12}{duration(wall):>10}, or {duration(wall * used)} of core time; "
            f"start-up is {START_UP} s of it",
            *([f"  simulated   {duration(simulated.run):>10}"] if simulated else []),
            f"  {'on disk':12}{readable(disk_bytes(problem.first)):>10}",
            f"  {'checkpoint':12}{_checkpoint_text(problem.first)}",
            _start_text(problem),
        ]
    )


def _start_text(problem: Problem) -> str:
    """What is read and sent before the first round."""
    from mpi_ntkdfl.planning.costs import LIBRARIES

    data, placement = problem.dataset, problem.placement
    each = data.train_inputs.nbytes / len(data.train_inputs)
    elsewhere = int(problem.partition.sizes[placement.owned(0).stop :].sum() * each)
    return (
        f"  {'start-up':12}{readable(elsewhere):>10} of samples to other ranks, "
        f"{readable(data.test_inputs.nbytes)} of test samples to each other host;\n"
        f"{'':14}a host reads about {readable(LIBRARIES)} of libraries once"
    )


def _checkpoint_text(first: FirstRound) -> str:
    """Size of a checkpoint, and in how many files it is written."""
    from mpi_ntkdfl.planning.costs import checkpoint_bytes, checkpoint_parts

    size, smallest = checkpoint_bytes(first), first.config.output.part_bytes
    size_text = f"{readable(size):>10}"
    if groups := checkpoint_parts(first):
        part = readable(size / len(groups))
        return f"{size_text} in {len(groups)} parts of {part}, written at the same time"
    if smallest is None:
        return f"{size_text} in one file, because output.checkpoint_part is null"
    return f"{size_text} in one file; in parts from {readable(2 * smallest)} on, with several ranks"
