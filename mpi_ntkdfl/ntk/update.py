"""From evolved residuals to weights, and the choice of how far to evolve (NTK-DFL, steps 6 and 7)."""

from __future__ import annotations

import torch

from mpi_ntkdfl.model.losses import Loss, loss_value
from mpi_ntkdfl.model.network import Network


def candidate_weights(
    w_bar: torch.Tensor, products: torch.Tensor, lr: float, samples: int
) -> torch.Tensor:
    """`w(tau) = w_bar - (lr/N) sum_c J_c^T S_c(tau)`, `[tau, param]`.

    Args:
        w_bar: `[param]`, the neighbourhood's average, where the Jacobian was taken.
        products: `sum_c J_c^T S_c(tau)`, `[tau, param]`, with S the left sums of the residuals.
        lr: learning rate, the time of one step.
        samples: N, the samples of the neighbourhood.
    """
    return torch.add(w_bar, products, alpha=-lr / samples)


def network_losses(
    network: Network,
    candidates: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
) -> list[float]:
    """Loss of the true network at each of `candidates` `[tau, param]` on the neighbourhood's samples.

    This is what the authors' code selects tau by. It needs the neighbours' raw inputs.
    """
    outputs = network.functions(candidates, inputs)(inputs)
    losses: list[float] = loss_value(outputs, labels, loss).tolist()
    return losses


def linearised_losses(outputs: torch.Tensor, labels: torch.Tensor, loss: Loss) -> list[float]:
    """Loss of the evolved outputs `[tau, sample, output]`: no raw inputs needed."""
    losses: list[float] = loss_value(outputs, labels, loss).tolist()
    return losses


def best(losses: list[float]) -> int:
    """Index of the smallest loss, the first of equals; a loss that is not finite never wins.

    Returns -1 if none is finite.
    """
    finite = [index for index, value in enumerate(losses) if abs(value) < float("inf")]
    return min(finite, key=losses.__getitem__, default=-1)
