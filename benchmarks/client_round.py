"""CPU seconds of one client's round of NTK-DFL by phase, beside its floor.

    python benchmarks/client_round.py [--samples N ...] [--hidden WIDTH ...] [--reference N] [--floats]

The floor of a phase is the number of its necessary operations / the speed of a large matrix product, of
floats or of bytes, measured in the same run. For the evolution these are the operations of the kernel
products that it took. Inputs are random and the same in every run: ten classes with one mean image each.
Weights are freshly drawn, where the evolution is stiffest. The inputs are images of bytes, and they are
multiplied as bytes if the processor supports it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import reference
import timing
import torch

from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.evaluate import score
from mpi_ntkdfl.model.byte_products import measured
from mpi_ntkdfl.model.levels import Inputs, Levels
from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.mlp.jacobian import FactoredJacobian
from mpi_ntkdfl.ntk.evolve import Evolution, choose, evolve
from mpi_ntkdfl.ntk.kernel import trace_kernel
from mpi_ntkdfl.ntk.update import best, candidate_weights, network_losses

FEATURES, CLASSES, TEST = 784, 10, 10_000
LOOKS = FASHION_MNIST
TAUS = {"tau 100": (100,), "five taus": (100, 200, 400, 600, 800)}


@dataclass
class Client:
    """A neighbourhood's stacked data and the average of its weights."""

    network: MLP
    w_bar: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    lr: float
    levels: Levels | None

    def jacobian(self) -> FactoredJacobian:
        passed = self.network.activations(self.w_bar, self.inputs)
        self.outputs = passed.outputs
        return FactoredJacobian(self.network, self.w_bar, passed.inputs, self.levels)

    def evolved(self, kernel: torch.Tensor, taus: tuple[int, ...]) -> Evolution:
        targets = one_hot(self.labels, CLASSES, torch.float32)
        version, _ = choose("auto", kernel.device, kernel.dtype)
        return evolve(kernel, self.outputs, targets, self.lr, taus, implementation=version)

    def update(self, jacobian: FactoredJacobian, evolution: Evolution) -> torch.Tensor:
        products = jacobian.transposed_product(evolution.residual_sums)
        return candidate_weights(self.w_bar, products, self.lr, len(self.labels))

    def select(self, candidates: torch.Tensor) -> int:
        losses = network_losses(self.network, candidates, self.inputs, self.labels, "cross-entropy")
        return best(losses)

    def round(self, taus: tuple[int, ...]) -> tuple[torch.Tensor, int]:
        """Everything except the evaluation. Returns the new weights and their tau."""
        jacobian = self.jacobian()
        evolution = self.evolved(trace_kernel(jacobian, CLASSES), taus)
        candidates = self.update(jacobian, evolution)
        chosen = self.select(candidates)
        return candidates[chosen], taus[chosen]


def samples(rng: np.random.Generator, means: np.ndarray, n: int) -> tuple[np.ndarray, torch.Tensor]:
    """Images `[n, feature]` as bytes, and their labels."""
    labels = rng.integers(CLASSES, size=n)
    inputs = means[labels] + 0.7 * rng.standard_normal((n, FEATURES))
    images = 255 * (inputs * LOOKS.deviation + LOOKS.mean)
    return images.round().clip(0, 255).astype(np.uint8), torch.from_numpy(labels)


def make(
    n: int, hidden: int, lr: float, floats: bool = False
) -> tuple[Client, Inputs, torch.Tensor]:
    """A client, and test inputs and labels."""
    rng = np.random.default_rng(n + 7919 * hidden)
    network = MLP((FEATURES, hidden, CLASSES))
    # Smooth images, as correlated as photographs.
    coarse = rng.standard_normal((CLASSES, 7, 7)).repeat(4, 1).repeat(4, 2)
    means = 0.5 + 0.7 * coarse.reshape(CLASSES, FEATURES)
    images, labels = samples(rng, means, n)
    w_bar = torch.from_numpy(network.initial(rng)).float()
    test_images, test_labels = samples(rng, means, TEST)
    grid, levels = LOOKS.scaling.grid(), None
    if grid and measured().taken and not floats:
        levels = Levels.of_bytes(*grid)
    client = Client(network, w_bar, plain(images), labels, lr, levels)
    return client, levels.take(test_images) if levels else plain(test_images), test_labels


def plain(images: np.ndarray) -> torch.Tensor:
    """The inputs that a network gets from `images`."""
    return torch.from_numpy(LOOKS.scaling.apply(images))


@torch.inference_mode()
def measure(
    n: int, hidden: int, asked: argparse.Namespace, peak: float, byte_peak: float
) -> list[list[str]]:
    """Rows of the table."""
    client, test_inputs, test_labels = make(n, hidden, asked.lr, asked.floats)
    jacobian = client.jacobian()
    kernel = trace_kernel(jacobian, CLASSES)
    through, taus = hidden * (FEATURES + CLASSES), TAUS["five taus"]
    last = client.evolved(kernel, taus)
    candidates = client.update(jacobian, last)
    tasks: dict[str, Callable[[], object]] = {
        "forward, signals": client.jacobian,
        "kernel": lambda: trace_kernel(jacobian, CLASSES),
        "update, five taus": lambda: client.update(jacobian, last),
        "select, five taus": lambda: client.select(candidates),
        "evaluation": lambda: score(
            client.network, client.w_bar, test_inputs, test_labels, "cross-entropy"
        ),
    }
    first, digits, pace = FEATURES * hidden, 1, peak
    if client.levels:
        digits, pace = 3, byte_peak
    floors = {
        "forward, signals": 2 * n * through / peak,
        "kernel": n * n * FEATURES / pace + n * n * 2 * hidden / peak,
        "update, five taus": 2 * n * through * len(taus) / peak,
        "select, five taus": 2 * n * through * len(taus) / peak,
        "evaluation": 2 * TEST * (digits * first / pace + (through - first) / peak),
    }
    products = {}
    for name, some in TAUS.items():
        key = f"evolution, {name}"
        tasks[key] = lambda some=some: client.evolved(kernel, some)
        products[name] = client.evolved(kernel, some).products
        floors[key] = 2 * products[name] * n * n * CLASSES / peak
    for name, some in TAUS.items():
        key = f"round and evaluation, {name}"
        tasks[key] = lambda some=some: (client.round(some), tasks["evaluation"]())
        each = len(some) / len(taus)
        floors[key] = (
            floors["forward, signals"]
            + floors["kernel"]
            + floors[f"evolution, {name}"]
            + each * (floors["update, five taus"] + floors["select, five taus"])
            + floors["evaluation"]
        )
    rows = []
    for name, seconds in timing.medians(tasks, asked.repetitions).items():
        floor = floors[name]
        tau = name.removeprefix("evolution, ")
        note = f"{products[tau]} products" if tau in products and tau != name else ""
        rows.append(
            [
                *(str(n), str(hidden), name, f"{1e3 * seconds:.1f}", f"{1e3 * floor:.1f}"),
                *(f"{seconds / floor:.1f}", note),
            ]
        )
    return rows


def compare(n: int, hidden: int, lr: float) -> list[str]:
    """Compares with the plain reference for one client and tau 100."""
    client, *_ = make(n, hidden, lr)
    widths, taus = client.network.widths, TAUS["tau 100"]
    with torch.inference_mode():
        client.round(taus)
        start = time.process_time()
        found, _ = client.round(taus)
        middle = time.process_time()
    expected, _, products = reference.client_round(
        client.w_bar, client.inputs, client.labels, widths, lr, list(taus)
    )
    slow, fast = time.process_time() - middle, middle - start
    difference = float((found - expected).norm() / (expected - client.w_bar).norm())
    return [
        *(str(n), str(hidden), f"{fast:.3f}", f"{slow:.2f}", f"{slow / fast:.0f}"),
        *(str(products), f"{difference:.1e}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 1184, 2000], metavar="N")
    parser.add_argument("--hidden", type=int, nargs="+", default=[100], metavar="WIDTH")
    parser.add_argument("--reference", type=int, default=200, help="samples of it; 0: without")
    parser.add_argument("--floats", action="store_true", help="never multiply bytes")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    peak = timing.product_peak()
    byte_peak = timing.byte_peak() if measured().taken else 0.0
    print(
        f"matrix products: {peak / 1e9:.0f} GFLOP/s; of bytes: {byte_peak / 1e9:.0f} G/s; "
        f"copies: {timing.bandwidth() / 1e9:.1f} GB/s\n"
    )
    rows = []
    for n in asked.samples:
        for hidden in asked.hidden:
            rows += measure(n, hidden, asked, peak, byte_peak)
    header = ["samples", "hidden", "phase", "ms", "floor ms", "ratio", "kernel products"]
    timing.print_table(header, rows)
    if asked.reference:
        header = ["samples", "hidden", "s", "plain reference s", "ratio", "its products"]
        header.append("difference of the update")
        timing.print_table(header, [compare(asked.reference, h, asked.lr) for h in asked.hidden])


if __name__ == "__main__":
    main()
