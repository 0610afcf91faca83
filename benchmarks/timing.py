"""Shared by the benchmarks: alternated timing, the speed of this machine, a table.

Seconds are CPU seconds of the process, which other processes disturb less than the wall clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def medians(tasks: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median CPU seconds of each task; tasks alternate, so that a busy machine slows all equally."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repetitions + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if turn:  # the first turn warms up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def product_peak(size: int = 1536) -> float:
    """Operations per second of a large float32 matrix product, the best of five."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / _shortest(lambda: a @ b, 5)


def byte_peak(size: int = 1536) -> float:
    """Operations per second of a large product of bytes, the best of five."""
    a = torch.ones(size, size, dtype=torch.int8)
    return 2 * size**3 / _shortest(lambda: torch._int_mm(a, a), 5)


def bandwidth(nbytes: int = 2**27) -> float:
    """Bytes per second, read and written, of a copy that fits no cache; the best of five."""
    source = torch.zeros(nbytes, dtype=torch.uint8)
    target = torch.ones_like(source)
    return 2 * nbytes / _shortest(lambda: target.copy_(source), 5)


def _shortest(task: Callable[[], object], repetitions: int) -> float:
    found = []
    for _ in range(repetitions):
        start = time.process_time()
        task()
        found.append(time.process_time() - start)
    return min(found)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints Markdown with aligned columns."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |")
    print(flush=True)
