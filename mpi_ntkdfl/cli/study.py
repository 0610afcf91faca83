"""The `study` commands: list, plan, run, report. Heavy imports happen inside."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpi_ntkdfl.cli.groups import PROGRAM, Group, examples
from mpi_ntkdfl.cli.options import MEASURE, PLUGIN, SET
from mpi_ntkdfl.cli.targets import OVERWRITE, TARGET
from mpi_ntkdfl.runtime import logs, plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.stopping import UNFINISHED, watch_signals

if TYPE_CHECKING:
    from mpi_ntkdfl.studies.grid import Study

_NAME = click.argument("name", metavar="NAME_OR_YAML")
_RANKS = click.option("--ranks", type=click.IntRange(1), default=1, help="Ranks of each run.")


@dataclass(frozen=True)
class _Which:
    """What the command line says of a study's runs. The fields are the options of `_which`."""

    scale: str
    seeds: int | None
    overrides: tuple[str, ...]
    plugin_files: tuple[str, ...]
    folder: Path

    def expand(self, name: str) -> Study:
        """The study with these runs; the plugins are loaded first."""
        from mpi_ntkdfl.studies import grid

        plugins.load(self.plugin_files)
        return grid.expand(name, self.scale, self.folder, self.seeds, self.overrides)

    def words(self) -> list[str]:
        """The options as words of a command line."""
        words = ["--scale", self.scale]
        words += ["--seeds", str(self.seeds)] if self.seeds is not None else []
        words += [word for each in self.overrides for word in ("--set", each)]
        words += [word for each in self.plugin_files for word in ("--plugin", each)]
        return [*words, "-o", str(self.folder)]


def _which(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which runs a study has; the same options mean the same runs in every command."""

    @functools.wraps(command)
    def told(**given: Any) -> None:
        of_runs = {field.name: given.pop(field.name) for field in dataclasses.fields(_Which)}
        command(_Which(**of_runs), **given)

    options: list[Any] = [
        click.option(
            "--scale",
            default="paper",
            show_default=True,
            help="A scale of the study: for those of the package paper, or small for a laptop.",
        ),
        click.option("--seeds", type=click.IntRange(1), help="Number of seeds; the first is 0."),
        SET,
        PLUGIN,
        click.option(
            "-o",
            "--output",
            "folder",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("studies"),
            show_default=True,
            help="Folder of runs and reports; studies in one folder share runs.",
        ),
    ]
    for option in reversed(options):
        told = option(told)
    return told


@click.group(
    cls=Group,
    epilog=examples(
        "study plan selection --scale small",
        "study run selection --scale small",
        "study report selection --scale small --html selection.html",
    ),
)
def study() -> None:
    """Whole experiments: a grid of runs, and its tables and figures."""


@study.command("list", epilog=examples("study list"))
def list_studies() -> None:
    """List the studies that come with the package."""
    from mpi_ntkdfl.studies import definition

    for name in definition.names():
        click.echo(f"{name:16}{definition.text(name).splitlines()[0].removeprefix('# ')}")


@study.command("show", epilog=examples("study show theory > mine.yaml"))
@_NAME
def show_study(name: str) -> None:
    """Print a study's definition as YAML, to copy and change."""
    from mpi_ntkdfl.studies import definition

    click.echo(definition.text(name), nl=False)


@study.command(epilog=examples("study plan selection --scale small --runs"))
@_NAME
@_which
@_RANKS
@click.option("--runs", is_flag=True, help="List every run.")
@MEASURE
def plan(which: _Which, name: str, ranks: int, runs: bool, measure: bool) -> None:
    """Print how many runs there are, how many are done, and what the others will take."""
    import torch

    from mpi_ntkdfl.planning.costs import NOMINAL
    from mpi_ntkdfl.planning.costs import measure as measured
    from mpi_ntkdfl.studies import estimate

    torch.set_num_threads(1)
    planned = which.expand(name)
    machine = measured(torch.float32) if measure else NOMINAL
    click.echo(estimate.text(planned, estimate.estimate(planned, ranks, machine), ranks))
    if runs:
        click.echo("\n".join(["", *estimate.run_list(planned)]))


@study.command(
    "run",
    epilog=examples(
        "study run selection --scale small",
        "study run mine.yaml --scale paper --ranks 4 --task 0/8 -o studies",
    ),
)
@_NAME
@_which
@_RANKS
@click.option(
    "--launcher", help='Command that starts a run; default "mpirun -n {ranks}", none for one rank.'
)
@click.option("--task", metavar="I/N", default="0/1", help="Do the I-th of N shares, from 0.")
@click.option(
    "--fresh",
    is_flag=True,
    help="Do runs again that other sources of the package, or other plugins, computed or began.",
)
def run_study(
    which: _Which, name: str, ranks: int, launcher: str | None, task: str, fresh: bool
) -> None:
    """Do the runs that are not done; the same command goes on wherever it stopped.

    With one rank and no launcher the runs are done in this process; otherwise each run is a separate
    process. Several workers may do one study at the same time: no run is done twice. For a job array,
    task I of N does every N-th run. SIGTERM, SIGUSR1 and output.time_limit end the work with a
    checkpoint and exit code 75; a failed run does not stop the others, but makes the exit code 1.
    """
    from mpi_ntkdfl.studies import execute

    logs.set_up(0, quiet=True)
    watch_signals()
    how = execute.launch(launcher, ranks)
    planned = which.expand(name)
    mine = execute.share(planned.distinct(), *_task(task))
    tally = execute.work(planned, mine, how, click.echo, fresh)
    click.echo(
        f"{tally.done} done, {tally.before} done before, {tally.elsewhere} with other workers, "
        f"{len(tally.failed)} failed, of {len(mine)}"
    )
    if tally.other_code:
        click.echo(
            f"{tally.other_code} of those done before were computed by other sources of the package or "
            "by other plugins; --fresh does them again"
        )
    if tally.stopped:
        click.echo("stopped early; the same command goes on")
        sys.exit(UNFINISHED)
    if tally.failed:
        sys.exit(1)
    click.echo(_next_step(planned, [name, *which.words()]))


@study.command(
    epilog=examples("study report selection deviation --scale small --html studies.html")
)
@click.argument("names", metavar="NAME_OR_YAML...", nargs=-1, required=True)
@_which
@click.option("--html", type=TARGET, help="Also write one page with all figures and tables.")
@OVERWRITE
def report(which: _Which, names: tuple[str, ...], html: Path | None) -> None:
    """Make tables (CSV, text) and figures (PDF, SVG) of the finished runs; say which are missing."""
    from mpi_ntkdfl.studies import page
    from mpi_ntkdfl.studies import report as reporting

    logs.set_up(0, quiet=True)
    made = []
    for name in names:
        done = reporting.make(which.expand(name))
        reporting.write(done)
        click.echo(f"{done.text}\n\n{done.study.reports}\n")
        made.append(done)
    if html is not None:
        page.write(html, made)
        click.echo(html)


def _next_step(planned: Study, words: Sequence[str]) -> str:
    """What to do when this worker has done its share: wait for the others, or report."""
    from mpi_ntkdfl.studies.grid import is_done

    weights = planned.definition.needs_weights
    left = sum(not is_done(run, weights) for run in planned.distinct())
    command = f"{PROGRAM} study report {shlex.join(words)}"
    if left:
        return f"{left} runs of the study are not done yet; when they are, the next command is: {command}"
    return f"all runs of the study are done; the next command is: {command}"


def _task(text: str) -> tuple[int, int]:
    """`I/N`.

    Raises:
        InputError: if it is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None:
        raise InputError(f"--task needs I/N, such as 0/8 to 7/8, got {text!r}")
    return int(match[1]), int(match[2])
