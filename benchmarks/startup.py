"""What commands take before they answer, of two versions of the package by turns.

    python benchmarks/startup.py ../old . --record run.h5

Prints medians of the processor's seconds (user and system) and of wall time, and how many times as long
the first version takes (medians of pairs). Each run is a new process. The first run of a command compiles
its modules to bytecode and does not count. The last lines are what libraries take by themselves.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ("pass", "import click", "import numpy", "import h5py", "import h5py, click, yaml")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, help="folders that hold mpi_ntkdfl")
    parser.add_argument("--record", type=Path, help="an existing record for show and compare")
    parser.add_argument("--leave-out", nargs="*", default=[], help="commands, such as check")
    parser.add_argument("--repeats", type=int, default=7)
    words = parser.parse_args()
    commands = [["--help"], ["presets"], ["check", "quickstart"]]
    if words.record is not None:
        commands += [[name, str(words.record.absolute())] for name in ("show", "compare")]
    for command in commands:
        if command[0] not in words.leave_out:
            call = ["-m", "mpi_ntkdfl", *command]
            _print(command[0], {str(tree): (tree, call) for tree in words.trees}, words.repeats)
    here = words.trees[-1]
    _print("python", {code: (here, ["-c", code]) for code in LIBRARIES}, words.repeats)


def _print(name: str, calls: Mapping[str, tuple[Path, Sequence[str]]], repeats: int) -> None:
    """Prints a line per call; they are made by turns."""
    rounds = [[_run(*call) for call in calls.values()] for _ in range(repeats + 1)][1:]
    for place, called in enumerate(calls):
        cpu, wall = zip(*(each[place] for each in rounds), strict=True)
        first = statistics.median(each[0][1] / each[place][1] for each in rounds)
        print(
            f"{name:10}{statistics.median(cpu):8.3f} s of processor{statistics.median(wall):8.3f} s"
            f"{first:7.2f}  {called}",
            flush=True,
        )


def _run(tree: Path, arguments: Sequence[str]) -> tuple[float, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree.absolute()), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed in {tree}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


if __name__ == "__main__":
    main()
