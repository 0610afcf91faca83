"""Does the runs of a study that are not done: in this process, or each one through a launcher.

Any number of workers may share the folder of a study. A worker locks a run while it works on it, so no
two workers do the same run. A run of a killed worker continues from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mpi_ntkdfl import simulation
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.runtime.errors import InputError, MpiNtkdflError
from mpi_ntkdfl.runtime.launching import Launch, launcher_words
from mpi_ntkdfl.runtime.stopping import signalled
from mpi_ntkdfl.runtime.units import duration
from mpi_ntkdfl.storage import whole
from mpi_ntkdfl.storage.lock import InUse, holder, locked
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.studies.grid import Study, StudyRun, has_other_code, is_done


def launch(template: str | None, ranks: int) -> Launch | None:
    """The launcher that the user wants; None for runs in this process.

    Raises:
        InputError: if there is no launcher for several ranks, or the template is not readable.
    """
    if template is None and ranks == 1:
        return None
    return Launch(launcher_words(template), ranks)


@dataclass
class Tally:
    """The results of a worker's runs.

    Attributes:
        done: number of runs finished now.
        before: number of runs finished before.
        other_code: number of these that other sources of the package or other plugins computed.
        elsewhere: number of runs on which another worker works.
        failed: the errors of failed runs, by the run's label.
        stopped: whether a signal or the time limit ended the work.
    """

    done: int = 0
    before: int = 0
    other_code: int = 0
    elsewhere: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


def share(runs: Sequence[StudyRun], task: int, tasks: int) -> list[StudyRun]:
    """The runs of task `task` of `tasks`, from 0: those whose number is `task` modulo `tasks`.

    Raises:
        InputError: if there is no such task.
    """
    if not 0 <= task < tasks:
        raise InputError(f"--task I/N counts from 0, so I must be below N, got {task}/{tasks}")
    return [run for place, run in enumerate(runs) if place % tasks == task]


def work(
    study: Study,
    runs: Sequence[StudyRun],
    how: Launch | None,
    say: Callable[[str], None],
    fresh: bool = False,
) -> Tally:
    """Does those of `runs` that are not done and on which no worker works; failures do not stop others.

    Args:
        study: the study of the runs.
        runs: the runs to do, in order.
        how: how to start them as processes; None to do them in this process.
        say: function that is called with one line per run.
        fresh: do runs again that other sources of the package, or other plugins, computed or began.
    """
    tally, weights = Tally(), study.definition.needs_weights
    for place, run in enumerate(runs, 1):
        if signalled():
            tally.stopped = True
            return tally
        other = has_other_code(run.outputs)
        if is_done(run, weights) and not (other and fresh):
            tally.before += 1
            tally.other_code += other
            continue
        where, start = f"[{place}/{len(runs)}] {run.label} ({run.key})", time.monotonic()
        try:
            finished = _claimed(run, weights, how, fresh)
        except InUse:
            tally.elsewhere += 1
            say(f"{where}: another worker is at it")
            continue
        except MpiNtkdflError as error:
            tally.failed[run.label] = _message(error)
            say(f"{where}: failed: {_message(error)}")
            continue
        if not finished:
            tally.stopped = True
            say(f"{where}: stopped early, with a checkpoint")
            return tally
        tally.done += 1
        say(f"{where}: done in {duration(time.monotonic() - start)}")
    return tally


def _claimed(run: StudyRun, weights: bool, how: Launch | None, fresh: bool) -> bool:
    """Locks a run and does it, from its beginning if `fresh` is set; returns whether it is finished.

    Raises:
        InUse: if another worker does it, or if a process of a killed worker is still running.
        MpiNtkdflError: if it fails.
    """
    claim = Outputs(run.outputs.record.with_name(f"{run.key}.claim.h5"))
    for outputs in (claim, run.outputs):
        if who := holder(outputs):
            raise InUse(f"{outputs.record} is held by {who}")
    with locked(claim):
        if fresh and has_other_code(run.outputs):
            with locked(run.outputs):
                whole.remove(run.outputs)
        if is_done(run, weights):
            return True
        if how is None:
            return simulation.run(run.config, SoloWorld(), run.outputs, "resume").finished
        return how.run(run.config.to_yaml(), run.outputs.record)


def _message(error: BaseException) -> str:
    notes = dict.fromkeys(getattr(error, "__notes__", []))
    text = " ".join(str(error).split())
    return f"{text} ({', '.join(notes)})" if notes else text
