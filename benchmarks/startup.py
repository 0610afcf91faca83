"""What commands take before they answer, of two versions of the package by turns.

    python benchmarks/startup.py ../old . --record run.h5

Prints medians of the processor's seconds (user and system) and of wall time. Each run is a new process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, help="folders that hold mpi_ntkdfl")
    parser.add_argument("--record", type=Path, help="an existing record for show and compare")
    parser.add_argument("--repeats", type=int, default=7)
    words = parser.parse_args()
    commands = [["--help"], ["presets"], ["check", "quickstart"]]
    if words.record is not None:
        commands += [[name, str(words.record.absolute())] for name in ("show", "compare")]
    for command in commands:
        taken: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in words.trees}
        for _ in range(words.repeats):
            for tree, several in taken.items():
                several.append(_run(tree, command))
        for tree, several in taken.items():
            cpu, wall = (statistics.median(column) for column in zip(*several, strict=True))
            print(f"{command[0]:10}{cpu:8.3f} s of processor{wall:8.3f} s  {tree}", flush=True)


def _run(tree: Path, command: list[str]) -> tuple[float, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree.absolute()), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mpi_ntkdfl", *command],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed in {tree}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


if __name__ == "__main__":
    main()
