"""Processor seconds of a run's rounds by phase, of two versions of the package by turns.

    python benchmarks/rounds.py --trees ../old . --run paper-fashion-mnist-dfedavg clients=40

Each run is a new process with one rank and one thread. The output has the medians per round, the time of
the first version divided by that of each version, and how many test accuracies of clients and averages
differ from those of the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

# The clock of the phases reads the processor's time.
PROGRAM = """
import runpy, time
time.perf_counter = time.process_time
runpy.run_module("mpi_ntkdfl", run_name="__main__", alter_sys=True)
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", nargs="+", type=Path, help="folders that hold mpi_ntkdfl")
    parser.add_argument("--run", nargs="+", help="SOURCE [KEY=VALUE ...]")
    parser.add_argument("--repeats", type=int, default=3)
    words = parser.parse_args()
    seconds: dict[Path, list[dict[str, float]]] = {tree: [] for tree in words.trees}
    accuracies: dict[Path, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(words.repeats):
            for place, tree in enumerate(words.trees):
                record = Path(folder, f"{place}-{turn}.h5")
                _run(tree, words.run, record)
                by_phase, accuracies[tree] = _read(record)
                seconds[tree].append(by_phase)
    first = words.trees[0]
    totals = {}
    for tree, runs in seconds.items():
        by_phase = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        totals[tree] = statistics.median(sum(run.values()) for run in runs)
        listed = ", ".join(
            f"{name} {value:.3f}" for name, value in by_phase.items() if value > 1e-3
        )
        pairs = zip(seconds[first], runs, strict=True)
        ratio = statistics.median(sum(a.values()) / sum(b.values()) for a, b in pairs)
        differing = sum(
            int((~np.isclose(a, b, rtol=0, atol=1e-9, equal_nan=True)).sum())
            for a, b in zip(accuracies[first], accuracies[tree], strict=True)
        )
        print(f"{tree}: {totals[tree]:.3f} s per round ({listed})")
        print(f"  {ratio:.2f} times as fast as {first}; {differing} accuracies differ")


def _run(tree: Path, words: list[str], record: Path) -> None:
    source, *settings = words
    command = [sys.executable, "-c", PROGRAM, "run", source, "-q", "-o", str(record)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(tree.absolute()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)


def _read(record: Path) -> tuple[dict[str, float], list[np.ndarray]]:
    """Seconds per round by phase, and the accuracies."""
    with h5py.File(record) as file:
        mean = file["time/seconds"][()].mean((0, 1)).tolist()
        by_phase = dict(zip(file["time"].attrs["phases"], mean, strict=True))
        accuracies = [file[f"{part}/accuracy"][()] for part in ("clients", "model")]
    return by_phase, accuracies


if __name__ == "__main__":
    main()
