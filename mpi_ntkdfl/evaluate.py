"""What is measured after a round: every client's own model, and the average of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.comm.exchange import Federation, mean_over_clients
from mpi_ntkdfl.model.losses import Loss, correct, loss_value
from mpi_ntkdfl.model.nets import MLP

# Test samples a forward pass takes at once: few enough that the hidden layer stays in the cache. A
# constant, because sums over chunks round by their size.
_CHUNK = 1_000


@dataclass(frozen=True)
class Evaluation:
    """One row of the record. Arrays are `[client]`; only rank 0 has them complete.

    Attributes:
        accuracy: of each client's weights on the test set, NaN where not evaluated.
        loss: their test loss, likewise.
        model_accuracy: of the average of all clients on the test set.
        model_loss: its test loss.
        gradient_norm: Euclidean norm, at the average, of the gradient of the mean over clients of the
            clients' training losses.
        deviation: mean over clients of the Euclidean distance of their weights from the average.
    """

    accuracy: np.ndarray
    loss: np.ndarray
    model_accuracy: float
    model_loss: float
    gradient_norm: float
    deviation: float


def score(
    network: MLP, params: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor, loss: Loss
) -> tuple[float, float]:
    """Accuracy and mean loss of `params` `[param]` on `inputs` `[sample, feature]`."""
    right, total = 0, 0.0
    for start in range(0, len(labels), _CHUNK):
        chunk = labels[start : start + _CHUNK]
        outputs = network.outputs(params, inputs[start : start + _CHUNK])
        right += int(correct(outputs, chunk))
        total += float(loss_value(outputs, chunk, loss)) * len(chunk)
    return right / len(labels), total / len(labels)


class Evaluator:
    """Evaluates all clients of a federation on one test set."""

    def __init__(
        self,
        federation: Federation,
        inputs: torch.Tensor,
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

    def __call__(self, weights: torch.Tensor) -> Evaluation:
        """Evaluates `weights` `[owned, param]`; all ranks take part."""
        f = self._federation
        with f.clock("evaluate"):
            average = mean_over_clients(f, weights)
            distance = torch.linalg.vector_norm((weights - average).double(), dim=1)
            columns = np.full((len(weights), 3), np.nan)
            columns[:, 2] = distance.cpu().numpy()
            if self._clients:
                columns[:, :2] = [self._score(w) for w in weights]
            gathered = list(f.world.collect(columns))
            every = np.concatenate(gathered) if gathered else columns
            accuracy, loss = self._score(average) if f.world.rank == 0 else (np.nan, np.nan)
            return Evaluation(
                accuracy=every[:, 0],
                loss=every[:, 1],
                model_accuracy=accuracy,
                model_loss=loss,
                gradient_norm=self._gradient_norm(average),
                deviation=float(every[:, 2].mean()),
            )

    def _score(self, params: torch.Tensor) -> tuple[float, float]:
        return score(self._federation.network, params, self._inputs, self._labels, self._loss)

    def _gradient_norm(self, average: torch.Tensor) -> float:
        f = self._federation
        gradients = torch.stack([self._gradient(average, client) for client in f.owned])
        mean = mean_over_clients(f, gradients)
        return float(torch.linalg.vector_norm(mean.double()))

    def _gradient(self, params: torch.Tensor, client: int) -> torch.Tensor:
        """Gradient `[param]` of one client's training loss at `params`."""
        f = self._federation
        samples = f.samples[client]
        point = params.detach().clone().requires_grad_()
        loss = loss_value(f.network.outputs(point, samples.inputs), samples.labels, self._loss)
        (gradient,) = torch.autograd.grad(loss, point)
        return gradient
