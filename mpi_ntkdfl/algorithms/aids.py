"""Two additions that many methods share: momentum from round to round, and calibration to label skew.

Momentum starts a round at Nesterov's point (Nesterov, "A method of solving a convex programming problem
with convergence rate O(1/k^2)", 1983), with averages in the place of iterates. Calibration is logit
adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021). Zhang et al. ("Federated
learning with label distribution skew via logits calibration", ICML 2022) use it in local training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.model.network import Network


def calibration_shift(
    labels: torch.Tensor, classes: int, calibration: float, dtype: torch.dtype
) -> torch.Tensor | None:
    """The term added to the outputs in the training loss: `calibration * log(share of the class)`.

    Shares are (n_c + 1) / (N + C) for n_c of N samples in class c, so that no share is 0.

    Args:
        labels: labels of the samples in the loss, `[sample]` integers.
        classes: C.
        calibration: 0 for none, 1 for the full adjustment.
        dtype: type of the result.

    Returns:
        `[output]`, or None without calibration.
    """
    if not calibration:
        return None
    counts = one_hot(labels, classes, torch.float64).sum(0)
    shares = (counts + 1) / (len(labels) + classes)
    return shares.log().mul_(calibration).to(dtype)


def remembered(
    factor: float, network: Network, dtype: torch.dtype, kept: Callable[[int], int] | None = None
) -> Callable[[int], int] | None:
    """The value of `Needs.kept` with momentum: one more parameter vector per client.

    Args:
        factor: factor of the momentum; 0 for none.
        network: the model.
        dtype: type of the parameters.
        kept: the value without momentum.
    """
    if not factor:
        return kept
    vector = network.layout.size * dtype.itemsize
    return lambda samples: vector + (0 if kept is None else kept(samples))


class RoundMomentum:
    """The point `x + b (x - x')`, where x' is the x of the last round in which the client took part.

    In its first round a client has no x', and the point is x. Before it, its row of the state is NaN.
    """

    def __init__(self, factor: float, like: torch.Tensor, name: str) -> None:
        """Remembers nothing yet.

        Args:
            factor: b; 0 for no momentum, and then nothing is remembered.
            like: an array `[owned, param]` of the type and device of the weights.
            name: name of the state in checkpoints.
        """
        self._factor, self._name = factor, name
        self._last = torch.full_like(like, torch.nan) if factor else None

    def point(self, x: torch.Tensor) -> torch.Tensor:
        """The point `[owned, param]` of this round."""
        if self._last is None:
            return x
        moved = torch.add(x, x - self._last, alpha=self._factor)
        point = torch.where(self._last[:, :1].isnan(), x, moved)
        self._last = x.clone()
        return point

    def state(self) -> dict[str, torch.Tensor]:
        """The x of the last round, `[owned, param]`."""
        return {} if self._last is None else {self._name: self._last}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` returned."""
        if self._last is not None:
            self._last = state[self._name].to(self._last)


class CarriesMomentum:
    """The state of a method that carries only its momentum from round to round.

    Attributes:
        momentum: made by the method's constructor.
    """

    momentum: RoundMomentum

    def state(self) -> dict[str, torch.Tensor]:
        """The arrays of momentum, `[owned, param]`; none without momentum."""
        return self.momentum.state()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` returned."""
        self.momentum.restore(state)
