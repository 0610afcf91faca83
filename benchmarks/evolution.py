"""CPU milliseconds of one client's evolution, compiled and in tensors, with the errors of both.

    python benchmarks/evolution.py [--pairs N] [--saved FILE ...]

The problems are neighbourhoods of images as in `client_round.py`, at freshly drawn weights, where the
evolution is stiffest. With FILE they come from a list of (kernel, outputs, targets, lr) that torch
saved. Each pair runs both versions. Times are medians over pairs of one run, in float32. The error of
the update is the largest over taus, against an evolution in float64 at a tolerance of 1e-9.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import client_round
import torch

from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.ntk.evolve import Evolution, Implementation, evolve
from mpi_ntkdfl.ntk.kernel import trace_kernel

Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]
SIZES = (108, 250, 400, 1184)
TAUS = {"five taus": (100, 200, 400, 600, 800), "tau 800": (800,)}


def drawn(samples: int) -> list[Problem]:
    """One neighbourhood of the paper's network."""
    client, *_ = client_round.make(samples, 100, 0.01)
    jacobian = client.jacobian()
    kernel = trace_kernel(jacobian, client_round.CLASSES)
    targets = one_hot(client.labels, client_round.CLASSES, torch.float32)
    return [(kernel, client.outputs, targets, client.lr)]


def evolved(problem: Problem, taus: tuple[int, ...], implementation: Implementation) -> Evolution:
    kernel, outputs, targets, lr = problem
    return evolve(kernel, outputs, targets, lr, taus, implementation=implementation)


def error(problem: Problem, evolution: Evolution) -> float:
    """Relative error of the update."""
    *arrays, lr = problem
    kernel, outputs, targets = (array.double() for array in arrays)
    exact = evolve(
        *(kernel, outputs, targets, lr, evolution.taus), tolerance=1e-9, implementation="compiled"
    ).residual_sums
    missed = evolution.residual_sums.double() - exact
    square, size = ((e * (kernel @ e)).sum((1, 2)) for e in (missed, exact))
    return math.sqrt((square / size).max())


def rows(problems: list[Problem], pairs: int) -> Iterator[str]:
    """A line for every choice of taus."""
    for name, taus in TAUS.items():
        times: dict[Implementation, list[float]] = {"tensor": [], "compiled": []}
        for pair in range(pairs + 1):
            for implementation, taken in times.items():
                start = time.process_time()
                evolved(problems[pair % len(problems)], taus, implementation)
                taken.append(1e3 * (time.process_time() - start))
        # The first pair loads and checks the build.
        tensor, compiled = (statistics.median(taken[1:]) for taken in times.values())
        errors = [error(problems[0], evolved(problems[0], taus, each)) for each in times]
        yield (
            f"{len(problems[0][1]):>8}  {name:10}{tensor:>10.1f}{compiled:>10.2f}"
            f"{tensor / compiled:>8.1f}{errors[0]:>10.1e}{errors[1]:>10.1e}"
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--saved", type=Path, nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sets = [torch.load(path) for path in asked.saved] or [drawn(n) for n in SIZES]
    print("                          CPU milliseconds              error of the update")
    print(" samples  taus          tensor  compiled   ratio    tensor  compiled")
    for problems in sets:
        for line in rows(problems, asked.pairs):
            print(line)


if __name__ == "__main__":
    main()
