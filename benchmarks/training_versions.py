"""Local training in tensors and compiled, beside what `check` predicts.

    python benchmarks/training_versions.py

Prints milliseconds of the processor per client and round of `descend`: random inputs, one thread, both
versions by turns, the best of the repeats; and the predicted divided by the measured time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from mpi_ntkdfl.algorithms.dfedavg import Dfedavg, DfedavgSettings
from mpi_ntkdfl.algorithms.work import Load
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.training import Sgd
from mpi_ntkdfl.planning.costs import client_seconds, measure
from mpi_ntkdfl.runtime import seeds

CASES = (
    ((784, 100, 10), 200, 25, 20),
    ((784, 100, 10), 200, 10, 5),
    ((784, 100, 10), 200, 25, 1),
    ((784, 200, 10), 600, 25, 20),
    ((784, 100, 10), 3000, 25, 20),
    ((64, 100, 10), 18, 25, 20),
)
"""Widths, samples, batch, passes."""

CLIENTS = 4


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    machine = measure(torch.float32)
    print(machine.words)
    for widths, samples, batch, epochs in CASES:
        least = _measured(MLP(widths), samples, batch, epochs, repeats)
        sizes = np.array([float(samples)])
        load = Load(MLP(widths), 4, sizes, sizes, np.zeros(1))
        work = Dfedavg.work(DfedavgSettings(batch=batch, epochs=epochs), load)
        line = f"{widths!s:16} {samples:5} samples, batches of {batch}, {epochs:2} passes"
        for version, phases in (("tensor", ()), ("compiled", ("train",))):
            ratio = client_seconds(work, machine, phases)["train"][0] / least[version]
            line += f"  {version} {1e3 * least[version]:7.2f} ms, predicted {ratio:.2f}"
        print(line, flush=True)


def _measured(
    network: MLP, samples: int, batch: int, epochs: int, repeats: int
) -> dict[str, float]:
    """Seconds of a client's round, by version."""
    drawn = torch.Generator().manual_seed(0)
    features, classes = network.widths[0], network.widths[-1]
    data = [
        (
            torch.rand(samples, features, generator=drawn),
            torch.randint(classes, (samples,), generator=drawn),
        )
        for _ in range(CLIENTS)
    ]
    weights = 0.05 * torch.randn(CLIENTS, network.layout.size, generator=drawn)

    def orders(place: int) -> np.ndarray:
        passes = np.tile(np.arange(samples), (epochs, 1))
        return seeds.generator(0, "batches", place, 0).permuted(passes, axis=1)

    trainers = {
        "tensor": network.trainer(data, batch, epochs, (), False),
        "compiled": network.trainer(data, batch, epochs, (), True),
    }
    least = dict.fromkeys(trainers, float("inf"))
    with torch.inference_mode():
        for repeat in range(repeats + 1):  # the first one computes what a run keeps
            for version, trainer in trainers.items():
                start = time.process_time()
                trainer.descend(weights, orders, Sgd(0.05, 0.0, 0.0))
                seconds = (time.process_time() - start) / CLIENTS
                least[version] = min(least[version], seconds) if repeat else float("inf")
    return least


if __name__ == "__main__":
    main()
