"""New weights from evolved residuals, and the choice of the number of steps (NTK-DFL, steps 6 and 7)."""

from __future__ import annotations

import torch

from mpi_ntkdfl.model.losses import Loss, loss_value
from mpi_ntkdfl.model.network import Network


def candidate_weights(
    w_bar: torch.Tensor, products: torch.Tensor, lr: float, samples: int
) -> torch.Tensor:
    """`w(tau) = w_bar - (lr/N) sum_c J_c^T S_c(tau)`, `[tau, param]`.

    Args:
        w_bar: the average of the neighbourhood, at which the Jacobian was taken, `[param]`.
        products: `sum_c J_c^T S_c(tau)`, `[tau, param]`, where S are the left sums of the residuals.
        lr: learning rate, which is the time of one step.
        samples: N, the number of samples in the neighbourhood.
    """
    return torch.add(w_bar, products, alpha=-lr / samples)


def network_losses(
    network: Network,
    candidates: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
    shift: torch.Tensor | None = None,
) -> list[float]:
    """Losses `[tau]` of the network itself at `candidates` `[tau, param]` on the neighbourhood's samples.

    The authors' code chooses tau by this loss. It needs the neighbours' raw inputs.
    """
    outputs = network.functions(candidates, inputs)(inputs)
    if shift is not None:
        outputs = outputs + shift
    losses: list[float] = loss_value(outputs, labels, loss).tolist()
    return losses


def linearised_losses(outputs: torch.Tensor, labels: torch.Tensor, loss: Loss) -> list[float]:
    """Losses `[tau]` of the evolved `outputs` `[tau, sample, output]`. They need no raw inputs."""
    losses: list[float] = loss_value(outputs, labels, loss).tolist()
    return losses


def best(losses: list[float]) -> int:
    """The index of the smallest finite loss (the first of equal ones), or -1 if no loss is finite."""
    finite = [index for index, value in enumerate(losses) if abs(value) < float("inf")]
    return min(finite, key=losses.__getitem__, default=-1)
