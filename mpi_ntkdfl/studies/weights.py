"""Results from the weights of finished runs: averages of some clients, change of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from mpi_ntkdfl.data import sources
from mpi_ntkdfl.evaluate import score
from mpi_ntkdfl.federation.clients import Samples
from mpi_ntkdfl.ntk.kernel import trace_kernel
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.studies.collect import Cell, Finished
from mpi_ntkdfl.studies.loaded import LoadedRun, load

_NUMBERS = 30
"""Largest number of averages of a run that are tested."""
_CLIENTS = 10
"""Number of clients whose kernels are compared; each needs two kernels."""


# ------------------------------------------------------------------------------ averages of some


def selection(cell: Cell) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Accuracy of the average of some clients, chosen by accuracy on one half of the test set.

    The halves are drawn by the run's seed. Ties are in client-id order.

    Returns:
        The numbers of averaged clients `[number]`, and for every order (best, random, worst first) the
        accuracy on the other half, `[seed, number]`.
    """
    by_order: dict[str, list[np.ndarray]] = {}
    numbers = np.zeros(0, dtype=np.int64)
    for finished, run in _runs(cell):
        halves = _halves(run, finished.run.config.seed)
        clients = len(run.params)
        numbers = np.unique(np.geomspace(1, clients, _NUMBERS).round().astype(np.int64))
        ranked = np.argsort([-_accuracy(run, p, halves[0]) for p in run.params], kind="stable")
        shuffled = seeds.generator(finished.run.config.seed, "selection order").permutation(clients)
        orders = {"best first": ranked, "random": shuffled, "worst first": ranked[::-1]}
        for name, order in orders.items():
            by_order.setdefault(name, []).append(_of_first(run, order, numbers, halves[1]))
    return numbers, {name: np.array(each) for name, each in by_order.items()}


def _halves(run: LoadedRun, seed: int) -> tuple[Samples, Samples]:
    """The test set in two random halves: to choose on, and to report."""
    order = seeds.generator(seed, "selection halves").permutation(len(run.data.test_labels))
    cut = len(order) // 2
    first, second = (
        run.samples(run.data.test_inputs[half], run.data.test_labels[half])
        for half in (order[:cut], order[cut:])
    )
    return first, second


def _accuracy(run: LoadedRun, params: torch.Tensor, samples: Samples) -> float:
    right, _ = score(run.network, params, samples.inputs, samples.labels, "cross-entropy")
    return float(right.sum() / len(samples.labels))


def _of_first(
    run: LoadedRun, order: np.ndarray, numbers: np.ndarray, samples: Samples
) -> np.ndarray:
    """Accuracy of the average of the first n clients of `order`, for every n of `numbers`."""
    total = torch.zeros(run.network.layout.size, dtype=torch.float64)
    accuracies, taken = [], 0
    for number in numbers.tolist():
        for client in order[taken:number].tolist():
            total += run.params[client]
        taken = number
        accuracies.append(_accuracy(run, (total / number).to(run.params.dtype), samples))
    return np.array(accuracies)


# --------------------------------------------------------------------------- change of the kernel


def drift(cell: Cell) -> Mapping[str, np.ndarray]:
    """Relative change `||K' - K|| / ||K||` of the trace kernel of a client's own data.

    Frobenius norms; a mean over the first clients, at their own weights.

    Returns:
        From the start to the end, and over the last round (from what a client carried into it to
        what it carries out of it), `[seed]` each; NaN where no checkpoint holds the round before.
    """
    whole, last = [], []
    for _, run in _runs(cell):
        clients = range(min(_CLIENTS, len(run.params)))
        data = [run.own([client]) for client in clients]
        kernel = _kernels(run, data)
        whole.append(_change(kernel, run.start(clients), run.params))
        last.append(np.nan if run.former is None else _change(kernel, run.former, run.params))
    return {"start to end": np.array(whole), "last round": np.array(last)}


def _kernels(run: LoadedRun, data: list[Samples]) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    def kernels(weights: torch.Tensor) -> list[torch.Tensor]:
        jacobians = (
            run.network.jacobian(weights[client], samples.inputs)
            for client, samples in enumerate(data)
        )
        return [trace_kernel(jacobian, run.network.classes) for jacobian in jacobians]

    return kernels


def _change(
    kernels: Callable[[torch.Tensor], list[torch.Tensor]], old: torch.Tensor, new: torch.Tensor
) -> float:
    pairs = zip(kernels(old), kernels(new), strict=True)
    changes = [float((after - before).norm() / before.norm()) for before, after in pairs]
    return float(np.mean(changes))


def _runs(cell: Cell) -> Iterator[tuple[Finished, LoadedRun]]:
    """The seeds of a cell, one in memory at a time; all have one data set."""
    data = sources.load(cell.finished[0].run.config.dataset)
    for finished in cell.finished:
        yield finished, load(finished.run.outputs, data)
