"""Reads a run while it is running, or after it was killed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.metrics import at
from mpi_ntkdfl.runtime.units import round_words
from mpi_ntkdfl.storage.lock import holder
from mpi_ntkdfl.storage.outputs import Outputs


def read(outputs: Outputs) -> tuple[tables.Run, str]:
    """The record, and whether the run is finished, running, or stopped before its end.

    The lock is looked at first, because a run that ends in between has recorded more rounds. A run on
    another machine is noticed if the file system shares locks.

    Raises:
        InputError: if the record is missing, damaged, or lacks what a run writes.
    """
    writer, run = holder(outputs), tables.read(outputs.record)
    done, rounds = tables.rounds_of(run)
    if done >= rounds:
        return run, finished(done, int(run.config["rounds"]), run.config.get("stop_at"))
    if writer is not None:
        return run, f"running: {done} of {rounds} rounds done, by {writer}"
    return run, f"stopped: {done} of {rounds} rounds recorded; run it again with --resume to go on"


def finished(done: int, rounds: int, stop_at: float | None) -> str:
    """How a run was finished: with all its rounds, or earlier because it has reached `stop_at`."""
    if done < rounds:
        return f"finished: {done} of {rounds} rounds, the average reached stop_at ({stop_at:g})"
    return f"finished: {done} rounds"


def follow(outputs: Outputs, interval: float) -> Iterator[str]:
    """Yields one line per evaluation, also for evaluations to come, until the run is finished.

    Args:
        outputs: the files of the run; its record may not exist yet.
        interval: seconds between looks.

    Raises:
        InputError: if the record is damaged.
    """
    shown, said = -1, ""
    while True:
        done, rounds, now = 0, 1, f"waiting for {outputs.record}"
        if outputs.record.exists():
            run, now = read(outputs)
            done, rounds = tables.rounds_of(run)
            for row, number in enumerate(run.rounds.tolist()):
                if number > shown:
                    yield _line(run, row, rounds)
                    shown = number
        if now.partition(":")[0] != said:
            said = now.partition(":")[0]
            yield now
        if done >= rounds:
            return
        time.sleep(interval)


def _line(run: tables.Run, row: int, rounds: int) -> str:
    """The line of one evaluation."""
    words = [round_words(int(run.rounds[row]), rounds)]
    for metric in at("live", list(run.metrics.values())):
        if run.has(metric) and not run.untested(metric)[row]:
            words.append(f"{metric.head} {metric.text(run.curve(metric)[row])}")
    return "  ".join(words)
