"""What a run shows while it runs: a live display on a terminal, plain lines in a batch log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mpi_ntkdfl.metrics import at
from mpi_ntkdfl.runtime.units import duration, round_words
from mpi_ntkdfl.simulation import Progress

_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Takes the progress of every round."""

    def __call__(self, progress: Progress) -> None:
        """Shows `progress`."""


def describe(progress: Progress) -> str:
    """One line: round, accuracy of the average, mean client, chosen tau, time used and left."""
    parts = [round_words(progress.done, progress.rounds)]
    numbers = progress.numbers()
    for metric in at("progress"):
        if metric.name in numbers:
            parts.append(f"{metric.head} {metric.text(numbers[metric.name])}")
    if progress.done and progress.taus.any():
        parts.append(f"mean tau {progress.taus.mean():.0f}")
    parts.append(f"{duration(progress.seconds)} gone")
    if progress.simulated is not None:
        parts.append(f"{duration(progress.simulated)} simulated")
    if progress.first < progress.done < progress.rounds:
        pace = progress.seconds / (progress.done - progress.first)
        left = pace * (progress.rounds - progress.done)
        parts.append(f"about {duration(left)} left")
    return "  ".join(parts)


@contextmanager
def reporter(quiet: bool) -> Iterator[Reporter]:
    """The reporter for the kind of standard error: silent, live, or lines."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _live() as live:
            yield live
    else:
        yield lambda progress: _log.info(describe(progress))


@contextmanager
def _live() -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Display

    with Display(
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    ) as display:
        task = display.add_task("starting")

        def show(progress: Progress) -> None:
            display.update(
                task,
                total=progress.rounds,
                completed=progress.done,
                description=describe(progress).partition("  ")[2],
            )

        yield show
