"""What is measured after a round: every client's own model, and the average of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.exchange import mean_over_clients
from mpi_ntkdfl.federation.waves import cut
from mpi_ntkdfl.model.levels import Inputs
from mpi_ntkdfl.model.losses import Loss, correct, loss_gradient, loss_value
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.device import on_gpu

# Test samples a forward pass takes at once on CPU: few enough that the hidden layer stays in the cache.
# A constant, because sums over chunks round by their size.
_CHUNK = 1_000

# Bytes of layers at most of the networks that a GPU evaluates at once, and samples it differentiates at.
_GPU_BYTES, _GPU_SAMPLES = 2**28, 2**16


@dataclass(frozen=True)
class Evaluation:
    """One row of the record. Arrays are `[client]`; only rank 0 has them complete.

    Attributes:
        accuracy: of each client's weights on the test set, NaN where not evaluated.
        loss: their test loss, likewise.
        own_accuracy: accuracy on a test set with the client's own label distribution, likewise.
        model_accuracy: of the average of all clients on the test set.
        model_loss: its test loss.
        gradient_norm: Euclidean norm, at the average, of the gradient of the mean over clients of the
            clients' training losses.
        deviation: mean over clients of the Euclidean distance of their weights from the average.
    """

    accuracy: np.ndarray
    loss: np.ndarray
    own_accuracy: np.ndarray
    model_accuracy: float
    model_loss: float
    gradient_norm: float
    deviation: float


def score(
    network: Network, params: torch.Tensor, inputs: Inputs, labels: torch.Tensor, loss: Loss
) -> tuple[np.ndarray, float]:
    """Of `params` `[param]` on `inputs` `[sample, feature]`: correct ones `[class]`, and mean loss."""
    right, losses = scores(network, params[None], inputs, labels, loss)
    return right[0], float(losses[0])


@torch.inference_mode()
def scores(
    network: Network, params: torch.Tensor, inputs: Inputs, labels: torch.Tensor, loss: Loss
) -> tuple[np.ndarray, np.ndarray]:
    """The same of several `params` `[model, param]`: `[model, class]` and `[model]`.

    On CPU a model's bits do not depend on the others: they come one after another.
    """
    at_once, samples = 1, _CHUNK
    if on_gpu(params.device):
        layers = len(labels) * sum(network.widths[1:]) * params.dtype.itemsize
        at_once, samples = max(_GPU_BYTES // layers, 1), len(labels)
    found = [np.zeros((0, network.widths[-1] + 1))]
    for first in range(0, len(params), at_once):
        some = params[first : first + at_once]
        outputs_of = network.functions(some, inputs)
        numbers = torch.zeros(
            len(some), network.widths[-1] + 1, dtype=torch.float64, device=params.device
        )
        for start in range(0, len(labels), samples):
            chunk = labels[start : start + samples]
            outputs = outputs_of(inputs[start : start + samples])
            numbers[:, :-1] += correct(outputs, chunk)
            numbers[:, -1] += loss_value(outputs, chunk, loss).double() * len(chunk)
        found.append(numbers.cpu().numpy())
    right, total = np.split(np.concatenate(found), [-1], axis=1)
    return right.astype(np.int64), total[:, 0] / len(labels)


def own_accuracy(right: np.ndarray, present: np.ndarray, own: np.ndarray) -> float:
    """Accuracy if the test set had a client's label distribution: `sum_c p(c) right(c) / present(c)`.

    Classes without test samples are left out of the client's distribution p.

    Args:
        right: test samples of each class the client gets right, `[class]`.
        present: test samples of each class, `[class]`.
        own: the client's training samples of each class, `[class]`.

    Returns:
        The accuracy, NaN if the test set has none of the client's classes.
    """
    known = (present > 0) & (own > 0)
    if not known.any():
        return float("nan")
    rates = right[known] / present[known]
    return float((own[known] * rates).sum() / own[known].sum())


class Evaluator:
    """Evaluates all clients of a federation on one test set."""

    def __init__(
        self,
        federation: Federation,
        inputs: Inputs,
        labels: torch.Tensor,
        loss: Loss,
        clients: bool,
    ) -> None:
        """Keeps the test set.

        Args:
            federation: the clients.
            inputs: test inputs `[sample, feature]`.
            labels: test labels `[sample]`.
            loss: which loss to report.
            clients: whether to evaluate every client's own model too.
        """
        self._federation = federation
        self._inputs, self._labels, self._loss, self._clients = inputs, labels, loss, clients
        self._present = self._by_class(labels)
        self._own = {
            client: self._by_class(own.labels) for client, own in federation.samples.items()
        }

    def __call__(self, weights: torch.Tensor) -> Evaluation:
        """Evaluates `weights` `[owned, param]`; all ranks take part."""
        f = self._federation
        with f.clock("evaluate"):
            average = mean_over_clients(f, weights)
            distance = torch.linalg.vector_norm((weights - average).double(), dim=1)
            columns = np.full((len(weights), 4), np.nan)
            columns[:, 3] = distance.cpu().numpy()
            if self._clients:
                columns[:, :3] = self._rows(weights)
            if f.world.rank:
                f.ledger.book_mpi("statistics", columns.nbytes)
            gathered = list(f.world.collect(columns))
            every = np.concatenate(gathered) if gathered else columns
            right, loss = np.zeros(0), np.nan
            if f.world.rank == 0:
                right, loss = score(f.network, average, self._inputs, self._labels, self._loss)
            return Evaluation(
                accuracy=every[:, 0],
                loss=every[:, 1],
                own_accuracy=every[:, 2],
                model_accuracy=right.sum() / len(self._labels),
                model_loss=loss,
                gradient_norm=self._gradient_norm(average),
                deviation=float(every[:, 3].mean()),
            )

    def _rows(self, weights: torch.Tensor) -> np.ndarray:
        """Accuracy, loss and own accuracy of own clients' `weights` `[owned, param]`: `[owned, 3]`."""
        f = self._federation
        right, loss = scores(f.network, weights, self._inputs, self._labels, self._loss)
        accurate = [
            own_accuracy(hits, self._present, self._own[client])
            for client, hits in zip(f.owned, right, strict=True)
        ]
        return np.stack([right.sum(1) / len(self._labels), loss, accurate], axis=1)

    def _by_class(self, labels: torch.Tensor) -> np.ndarray:
        """How many of `labels` `[sample]` are of each class, `[class]`."""
        classes = self._federation.network.widths[-1]
        return np.bincount(labels.cpu().numpy(), minlength=classes)

    def _gradient_norm(self, average: torch.Tensor) -> float:
        f = self._federation
        if on_gpu(f.device):
            gradients = self._gradient_sums(average)
        else:
            gradients = [
                loss_gradient(f.network, average, own.inputs, own.labels, self._loss)
                for own in f.samples.values()
            ]
        mean = mean_over_clients(f, torch.stack(gradients))
        return float(torch.linalg.vector_norm(mean.double()))

    def _gradient_sums(self, average: torch.Tensor) -> list[torch.Tensor]:
        """Sums `[param]` over many own clients each of what `_gradient_norm` adds up, in few calls."""
        f = self._federation
        groups = cut(f.owned, f.sizes, _GPU_SAMPLES)
        return [self._gradient_sum(average, [f.samples[c] for c in group]) for group in groups]

    def _gradient_sum(self, average: torch.Tensor, several: list[Samples]) -> torch.Tensor:
        inputs = torch.cat([own.inputs for own in several])
        labels = torch.cat([own.labels for own in several])
        sizes = torch.tensor([len(own.labels) for own in several])
        shares = (1 / sizes.to(average.dtype)).repeat_interleave(sizes).to(average.device)
        network = self._federation.network
        return loss_gradient(network, average, inputs, labels, self._loss, shares)
