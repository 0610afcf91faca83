"""Seconds per round of DFedAvg's local training, compared with torch.optim.SGD on one client at a time.

    python benchmarks/local_training.py [REPEATS]

Both train the paper's network on Fashion-MNIST with the paper's settings, on one thread,
alternated. The plain loop trains every tenth client, and its time is scaled up. MPI is not started.
"""

import sys
import time

import numpy as np
import torch

from mpi_ntkdfl.algorithms.dfedavg import DfedavgSettings
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.assembly import assemble, prepare
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime import seeds

EVERY = 10
SETTINGS = DfedavgSettings()


def federation() -> tuple[Federation, torch.Tensor]:
    """The paper's clients, and their starting weights `[client, param]`."""
    layers = [*read_source("paper-fashion-mnist-dfedavg"), {"compute": {"device": "cpu"}}]
    config = parse(layers)
    made = assemble(config, SoloWorld(), prepare(config, 1))
    return made.federation, made.weights


def plain(f: Federation, weights: torch.Tensor, client: int) -> torch.Tensor:
    """One client's round with torch's modules, autograd and optimiser: weights `[param]`."""
    widths, layout, own = f.network.widths, f.network.layout, f.samples[client]
    model = torch.nn.Sequential(
        torch.nn.Linear(*widths[:2]), torch.nn.ReLU(), torch.nn.Linear(*widths[1:])
    ).to(f.dtype)
    with torch.no_grad():
        for own_values, start in zip(
            model.parameters(), layout.unflatten(weights).values(), strict=True
        ):
            own_values.copy_(start)
    optimiser, n = torch.optim.SGD(model.parameters(), SETTINGS.lr), len(own.labels)
    tiled = np.tile(np.arange(n), (SETTINGS.epochs, 1))
    for order in seeds.generator(f.seed, "batches", client, 0).permuted(tiled, axis=1):
        for batch in torch.from_numpy(order.copy()).split(SETTINGS.batch):
            optimiser.zero_grad()
            outputs = model(own.inputs[batch])
            torch.nn.functional.cross_entropy(outputs, own.labels[batch]).backward()
            optimiser.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def peak() -> float:
    """Operations per second of a large matrix product in float32."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)


def operations(f: Federation) -> float:
    """Operations of a round's matrix products in the dual form, without paddings."""
    n, (features, width, classes) = f.sizes.astype(float), f.network.widths
    steps = SETTINGS.epochs * (2 * n * n * width + 6 * n * width * classes)
    return float((steps + 2 * 2 * n * features * width).sum())


def main() -> None:
    """Prints the table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    f, weights = federation()
    training = LocalTraining(f, SETTINGS.batch, SETTINGS.epochs)
    chosen = list(f.owned)[::EVERY]
    training.descend(weights, 0, SETTINGS.sgd(0))  # computes the Gram matrices, once per run
    rows, peaks = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        found = training.descend(weights, 0, SETTINGS.sgd(0))
        middle = time.perf_counter()
        wanted = torch.stack([plain(f, weights[client], client) for client in chosen])
        end = time.perf_counter()
        rows.append((middle - start, (end - middle) * len(weights) / len(chosen)))
        peaks.append(peak())
    difference = (found[chosen] - wanted).norm(dim=1) / (wanted - weights[chosen]).norm(dim=1)
    floor = operations(f) / max(peaks)
    print(
        f"{len(weights)} clients, {f.sizes.sum()} samples, {SETTINGS.epochs} passes in batches of "
        f"{SETTINGS.batch}; seconds a round on one thread"
    )
    print(f"{'this package':>14}{'torch, a client at a time':>28}{'times faster':>15}")
    for ours, theirs in rows:
        print(f"{ours:14.2f}{theirs:28.2f}{theirs / ours:15.1f}")
    print(f"the plain loop's seconds are those of {len(chosen)} clients, times {EVERY}")
    print(
        f"difference of a client's weights beside its step: median {float(difference.median()):.1e}, "
        f"largest {float(difference.max()):.1e} (some clients' steps amplify any rounding)"
    )
    print(
        f"floor: {operations(f) / 1e9:.1f} G operations at {max(peaks) / 1e9:.0f} G/s are "
        f"{floor:.2f} s; the best round takes {min(r[0] for r in rows) / floor:.1f} times that"
    )


if __name__ == "__main__":
    main()
