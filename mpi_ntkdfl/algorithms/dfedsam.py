"""DFedSAM (Shi et al., "Improving the model consistency of decentralized federated learning", ICML 2023).

This is DFedAvg with local steps of sharpness-aware minimisation (SAM): the gradient is taken at the
nearby point where the loss is approximately highest, w + rho g / ||g||. The adaptive variant (Kwon et
al., "ASAM", ICML 2021) measures distances relative to the weights: w + rho w^2 g / ||w g||, entry by
entry.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.train_then_average import GossipSettings, TrainThenAverage
from mpi_ntkdfl.algorithms.training import Batch, Decay, Epochs, Factor, Momentum, Rate
from mpi_ntkdfl.model.training import Gradient, Layers, Sgd, SgdRule
from mpi_ntkdfl.runtime.looks import PURPLE, LineStyle


class DfedsamSettings(GossipSettings):
    """Settings of DFedSAM; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["dfedsam"] = "dfedsam"
    lr: Rate = 0.01
    lr_factor: Factor = 0.95
    batch: Batch = 32
    epochs: Epochs = 5
    momentum: Momentum = 0.99
    weight_decay: Decay = 5e-4
    rho: float = Field(default=0.01, gt=0, le=1e6)
    """Distance of the nearby point at which the gradient is taken."""
    adaptive: bool = True
    """Whether the distance is relative to the weights' own sizes."""


class SamRule:
    """SGD along the gradient at the worst point nearby. See `Rule`."""

    def __init__(self, sgd: Sgd, rho: float, adaptive: bool) -> None:
        """Starts without velocity."""
        self._rule, self._rho, self._adaptive = SgdRule(sgd), rho, adaptive

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place."""
        slopes = [slope.dense() for slope in gradient(layers)]
        if self._adaptive:
            slopes = [slope.mul_(layer) for slope, layer in zip(slopes, layers, strict=True)]
        norms = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes]).sum(0).sqrt_()
        # Empty places of a group have a gradient of 0, which has no direction.
        reach = self._rho / (norms + 1e-12)
        nearby = []
        for slope, layer in zip(slopes, layers, strict=True):
            away = slope.mul_(reach.view(-1, *[1] * (slope.ndim - 1)))
            nearby.append(layer + (away.mul_(layer) if self._adaptive else away))
        self._rule.descend(layers, gradient(nearby))


class Dfedsam(TrainThenAverage[DfedsamSettings]):
    """Local passes of SAM, then one averaging step."""

    Settings = DfedsamSettings
    label = "DFedSAM"
    look = LineStyle(PURPLE, (8, 2), "v")
    plain_sgd = False
    gradients_per_step = 2

    def train(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        """Local passes of SAM."""
        s = self.settings
        return self.training.follow(
            weights, number, lambda _: SamRule(s.sgd(number), s.rho, s.adaptive)
        )
