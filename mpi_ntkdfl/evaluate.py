"""What is measured after a round: every client's own model, and the average of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.exchange import mean_over_clients
from mpi_ntkdfl.federation.waves import cut
from mpi_ntkdfl.metrics import (
    ACCURACY,
    ACCURACY_ERROR,
    AUC,
    BALANCED,
    BY_SITE,
    CALIBRATION,
    CLIENT_ACCURACY,
    CLIENT_LOSS,
    CROSS_ACCURACY,
    DEVIATION,
    GRADIENT_NORM,
    LOSS,
    METRICS,
    OWN_ACCURACY,
    SENSITIVITY,
    SPECIFICITY,
    Metric,
)
from mpi_ntkdfl.model import two_classes
from mpi_ntkdfl.model.by_sample import BySample, Sites, standard_error
from mpi_ntkdfl.model.levels import Inputs
from mpi_ntkdfl.model.losses import Loss, correct, sample_losses
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.device import on_gpu
from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.runtime.metric import conditions
from mpi_ntkdfl.runtime.seeds import generator

# Test samples per forward pass on a CPU. They are so few that the hidden layer stays in the cache. The
# number is constant, because the rounding of sums over chunks depends on it.
_CHUNK = 1_000

# Chunks whose outputs are counted together, because short calls of torch take longer than their work.
_TOGETHER = 10

# On a GPU: bytes of layers of the networks that are evaluated together, and samples at which gradients
# are taken together, at most.
_GPU_BYTES, _GPU_SAMPLES = 2**28, 2**16


Evaluation = Mapping[str, np.ndarray]
"""The values of one row of the record by the metrics' names: `[client]` or `[]`, as their axes say.

Only rank 0 has all of them. Metrics that were not measured are absent, such as those of each client's own
model in evaluations that leave the clients out.
"""


@dataclass(frozen=True)
class View:
    """The argument of a user's metric: one model, either a client's own or the average of all.

    The function `measure` must return one number and must not change any of the tensors.

    Attributes:
        network: the network that all clients have.
        params: a copy of the model's parameters, `[param]`.
        inputs: inputs of the test set, `[sample, feature]`, or of the samples that are drawn from it for
            the tests of clients (`evaluation.sample`).
        labels: their labels, `[sample]` int64.
        samples: the client's own training samples; None for the average.
        client: the client's id; None for the average.
        round: the number of rounds done.
    """

    network: Network
    params: torch.Tensor
    inputs: Inputs
    labels: torch.Tensor
    samples: Samples | None
    client: int | None
    round: int

    @cached_property
    def outputs(self) -> torch.Tensor:
        """The network's outputs at `inputs` before the softmax, `[sample, output]`."""
        with torch.no_grad():
            return self.network.functions(self.params[None], self.inputs)(self.inputs)[0]


def score(
    network: Network, params: torch.Tensor, inputs: Inputs, labels: torch.Tensor, loss: Loss
) -> tuple[np.ndarray, float]:
    """Evaluates one model; see `scores`.

    Args:
        network: the network.
        params: the model's parameters, `[param]`.
        inputs: test inputs, `[sample, *shape]`.
        labels: test labels, `[sample]`.
        loss: the loss to report.

    Returns:
        How many samples of each class are classified correctly, `[class]`, and the mean loss.
    """
    right, losses = scores(network, params[None], inputs, labels, loss)
    return right[0], float(losses[0])


@torch.inference_mode()
def scores(
    network: Network, params: torch.Tensor, inputs: Inputs, labels: torch.Tensor, loss: Loss
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluates several models with the parameters `params` `[model, param]` on the same samples.

    On a CPU the models are evaluated one after another, so a model's bits do not depend on the others.

    Returns:
        How many samples of each class are classified correctly, `[model, class]`, and mean losses
        `[model]`.
    """
    at_once, samples = 1, _CHUNK
    if on_gpu(params.device):
        layers = (
            len(labels) * (network.work.activations - network.work.features) * params.dtype.itemsize
        )
        at_once, samples = max(_GPU_BYTES // layers, 1), len(labels)
    blocks = [np.zeros((0, network.classes + 1))]
    for first in range(0, len(params), at_once):
        some = params[first : first + at_once]
        outputs_of = network.functions(some, inputs)
        numbers = torch.zeros(
            len(some), network.classes + 1, dtype=torch.float64, device=params.device
        )
        for start in range(0, len(labels), _TOGETHER * samples):
            several = slice(start, start + _TOGETHER * samples)
            outputs = _in_chunks(outputs_of, inputs[several], samples)
            numbers[:, :-1] += correct(outputs, labels[several])
            losses = sample_losses(outputs, labels[several], loss)
            for chunk in torch.split(losses, samples, dim=-1):
                numbers[:, -1] += chunk.mean(-1).double() * chunk.shape[-1]
        blocks.append(numbers.cpu().numpy())
    right, total = np.split(np.concatenate(blocks), [-1], axis=1)
    return right.astype(np.int64), total[:, 0] / len(labels)


def _in_chunks(
    outputs_of: Callable[[Inputs], torch.Tensor], inputs: Inputs, samples: int
) -> torch.Tensor:
    """Outputs `[model, sample, output]` of `inputs`, computed for so many samples at a time.

    The order of their axes in memory is that of the network's own outputs.
    """
    parts = [
        outputs_of(inputs[start : start + samples]) for start in range(0, len(inputs), samples)
    ]
    if len(parts) == 1:
        return parts[0]
    if parts[0].stride(-1) == 1:
        return torch.cat(parts, dim=1)
    return torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2)


def own_accuracy(right: np.ndarray, present: np.ndarray, own: np.ndarray) -> float:
    """Accuracy on a test set with the client's label distribution: `sum_c p(c) right(c) / present(c)`.

    Classes without test samples are left out of the client's distribution p.

    Args:
        right: number of test samples that the client classifies correctly, `[class]`.
        present: number of test samples, `[class]`.
        own: number of the client's training samples, `[class]`.

    Returns:
        The accuracy, or NaN if the test set contains none of the client's classes.
    """
    shared = (present > 0) & (own > 0)
    if not shared.any():
        return float("nan")
    rates = right[shared] / present[shared]
    return float((own[shared] * rates).sum() / own[shared].sum())


def _registered(axes: str) -> list[Metric]:
    """The metrics with these axes that users have registered."""
    return [m for m in METRICS.values() if m.measure is not None and m.axes == axes]


def _measured(metric: Metric, view: View) -> float:
    """The value of a user's metric for a model.

    Raises:
        SimulationError: if its function returns no number.
    """
    assert metric.measure is not None
    value = metric.measure(view)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SimulationError(
            f"the measure function of metric {metric.name} must return one number, got {value!r}"
        ) from error


_OF_TWO_CLASSES = (
    (AUC, two_classes.auc),
    (BALANCED, two_classes.balanced_accuracy),
    (SENSITIVITY, two_classes.sensitivity),
    (SPECIFICITY, two_classes.specificity),
    (CALIBRATION, two_classes.calibration_error),
)


def _apart(columns: Mapping[str, np.ndarray], every: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of all clients, `[client]` or `[client, site]` each.

    Args:
        columns: those of the own clients, which tell names, order and widths.
        every: all columns of all clients side by side, `[client, column]`.
    """
    values, start = {}, 0
    for name, own in columns.items():
        width = own.shape[1] if own.ndim == 2 else 1
        part = every[:, start : start + width]
        values[name] = part if own.ndim == 2 else part[:, 0]
        start += width
    return values


class Evaluator:
    """Evaluates all clients of a federation on one test set."""

    def __init__(
        self,
        federation: Federation,
        inputs: Inputs,
        labels: torch.Tensor,
        loss: Loss,
        sites: Sites | None = None,
        sample: int | None = None,
        seed: int = 0,
    ) -> None:
        """Stores the test set and counts its classes.

        Args:
            federation: the clients.
            inputs: test inputs, `[sample, *shape]`.
            labels: test labels, `[sample]`.
            loss: the loss to report.
            sites: sites of the test samples; None if there are none.
            sample: number of test samples for the tests of clients' own models; None for all.
            seed: the run's seed, by which they are drawn.
        """
        self._federation, self._loss = federation, loss
        self._sample, self._seed = sample, seed
        network, count = federation.network, 0 if sites is None else sites.sites
        self._tests = BySample(network, inputs, labels, sites)
        self._fulfilled = conditions(network.classes, count, federation.placement.clients)
        self._own = {
            client: np.bincount(own.labels.cpu().numpy(), minlength=network.classes)
            for client, own in federation.samples.items()
        }

    def __call__(self, weights: torch.Tensor, clients: bool, done: int = 0) -> Evaluation:
        """Evaluates the average of all clients, and their own models. All ranks must call this.

        Args:
            weights: of the own clients, `[owned, param]`.
            clients: whether to test every client's own model too.
            done: number of rounds done.
        """
        f = self._federation
        with f.clock("evaluate"):
            average = mean_over_clients(f, weights)
            columns = self._of_clients(weights, average, clients, done)
            own = np.column_stack(list(columns.values()))
            if f.world.rank:
                f.ledger.book_mpi("statistics", own.nbytes)
            gathered = list(f.world.collect(own))
            every = np.concatenate(gathered) if gathered else own
            values = _apart(columns, every)
            values[DEVIATION.name] = values[DEVIATION.name].mean()
            if f.world.rank == 0:
                values |= self._of_average(average, done)
            values[GRADIENT_NORM.name] = np.array(self._gradient_norm(average))
            return values

    def _of_clients(
        self, weights: torch.Tensor, average: torch.Tensor, clients: bool, done: int
    ) -> dict[str, np.ndarray]:
        """Metrics measured on own clients' `weights` `[owned, param]`: `[owned]`, or `[owned, site]`."""
        f = self._federation
        distance = torch.linalg.vector_norm((weights - average).double(), dim=1)
        columns: dict[str, np.ndarray] = {}
        if clients:
            tests = self._tests
            if self._sample is not None:
                tests = tests.drawn(self._sample, generator(self._seed, "tests of clients", done))
            present = tests.by_class()
            right, loss = scores(f.network, weights, tests.inputs, tests.labels, self._loss)
            accuracy = right.sum(1) / len(tests.labels)
            columns[CLIENT_ACCURACY.name] = accuracy
            if self._sample is not None:
                error = standard_error(accuracy, len(tests.labels), len(self._tests.labels))
                columns[ACCURACY_ERROR.name] = error
            columns[CLIENT_LOSS.name] = loss
            columns[OWN_ACCURACY.name] = np.array(
                [
                    own_accuracy(hits, present, self._own[client])
                    for client, hits in zip(f.owned, right, strict=True)
                ]
            )
            if CROSS_ACCURACY.when <= self._fulfilled:
                columns[CROSS_ACCURACY.name] = np.array(
                    [tests.accuracies(tests.outputs(w)) for w in weights]
                ).reshape(len(weights), -1)
            if registered := _registered("row,client"):
                views = (
                    self._view(tests, params, client, done)
                    for client, params in zip(f.owned, weights, strict=True)
                )
                rows = np.array(
                    [[_measured(metric, view) for metric in registered] for view in views]
                )
                columns |= {metric.name: rows[:, place] for place, metric in enumerate(registered)}
        return columns | {DEVIATION.name: distance.cpu().numpy()}

    def _of_average(self, average: torch.Tensor, done: int) -> dict[str, np.ndarray]:
        """Metrics that are measured on the `average` `[param]` and the test set."""
        tests = self._tests
        right, loss = score(
            self._federation.network, average, tests.inputs, tests.labels, self._loss
        )
        values = {
            ACCURACY.name: np.array(right.sum() / len(tests.labels)),
            LOSS.name: np.array(loss),
        }
        if self._fulfilled:
            values |= self._of_samples(average)
        if registered := _registered("row"):
            view = self._view(tests, average, None, done)
            values |= {metric.name: np.array(_measured(metric, view)) for metric in registered}
        return values

    def _of_samples(self, average: torch.Tensor) -> dict[str, np.ndarray]:
        """Metrics of the `average` `[param]` for two classes and for sites, if the run has them."""
        outputs, by_site = self._tests.outputs(average), BY_SITE[ACCURACY.name]
        values = {}
        if by_site.when <= self._fulfilled:
            values[by_site.name] = self._tests.accuracies(outputs)
        for metric, measure in _OF_TWO_CLASSES:
            if not metric.when <= self._fulfilled:
                continue
            probability, labels = two_classes.probabilities(outputs), self._tests.classes
            values[metric.name] = np.array(measure(probability, labels))
            if by_site.when <= self._fulfilled:
                values[BY_SITE[metric.name].name] = np.array(
                    [measure(probability[of], labels[of]) for of in self._tests.members()]
                )
        return values

    def _view(self, tests: BySample, params: torch.Tensor, client: int | None, done: int) -> View:
        f = self._federation
        samples = None if client is None else f.samples[client]
        with torch.inference_mode(False):  # so that metrics can take gradients of the copy
            copy = params.clone()
        return View(f.network, copy, tests.inputs, tests.labels, samples, client, done)

    def _gradient_norm(self, average: torch.Tensor) -> float:
        f = self._federation
        if on_gpu(f.device):
            gradients = self._gradient_sums(average)
        else:
            gradients = [
                f.network.loss_gradient(average, own.inputs, own.labels, self._loss)
                for own in f.samples.values()
            ]
        mean = mean_over_clients(f, torch.stack(gradients))
        return float(torch.linalg.vector_norm(mean.double()))

    def _gradient_sums(self, average: torch.Tensor) -> list[torch.Tensor]:
        """Sums of own clients' gradients at `average`, `[param]` each, with many clients per call."""
        f = self._federation
        groups = cut(f.owned, f.sizes, _GPU_SAMPLES)
        return [self._gradient_sum(average, [f.samples[c] for c in group]) for group in groups]

    def _gradient_sum(self, average: torch.Tensor, several: list[Samples]) -> torch.Tensor:
        inputs = torch.cat([own.inputs for own in several])
        labels = torch.cat([own.labels for own in several])
        sizes = torch.tensor([len(own.labels) for own in several])
        shares = (1 / sizes.to(average.dtype)).repeat_interleave(sizes).to(average.device)
        network = self._federation.network
        return network.loss_gradient(average, inputs, labels, self._loss, shares)
