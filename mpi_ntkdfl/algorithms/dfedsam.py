"""DFedSAM (Shi et al., "Improving the model consistency of decentralized federated learning", ICML 2023).

DFedAvg whose local steps are those of sharpness-aware minimisation: the gradient is taken where the
loss nearby is about highest. Adaptive (Kwon et al., "ASAM", ICML 2021) measures "nearby" in units of the
weights' own sizes: w + rho w^2 g / ||w g||, entry by entry, where plain SAM takes w + rho g / ||g||.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.algorithms.train_then_average import TrainingSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.training import Gradient, Layers, Sgd, SgdRule


class DfedsamSettings(TrainingSettings):
    """Settings of DFedSAM; the defaults are those of the NTK-DFL paper's comparison.

    `rho` is the distance to which the loss is looked at, `adaptive` whether in units of the weights.
    """

    name: Literal["dfedsam"] = "dfedsam"
    lr: float = Field(default=0.01, gt=0)
    lr_factor: float = Field(default=0.95, gt=0)
    batch: int = Field(default=32, ge=1)
    epochs: int = Field(default=5, ge=1)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    rho: float = Field(default=0.01, gt=0)
    adaptive: bool = True
    averaging: Literal["plain", "samples"] = "plain"


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
        # Without a slope, as in a group's empty places, there is no direction either.
        reach = self._rho / (norms + 1e-12)
        nearby = []
        for slope, layer in zip(slopes, layers, strict=True):
            away = slope.mul_(reach.view(-1, *[1] * (slope.ndim - 1)))
            nearby.append(layer + (away.mul_(layer) if self._adaptive else away))
        self._rule.descend(layers, gradient(nearby))


class Dfedsam(Method[DfedsamSettings]):
    """Local passes of SAM, then one averaging step."""

    Settings = DfedsamSettings

    def __init__(self, settings: DfedsamSettings, federation: Federation) -> None:
        """Prepares local training; no state is carried from round to round but the weights."""
        super().__init__(settings, federation)
        self.training = LocalTraining(federation, settings.batch, settings.epochs)

    @classmethod
    def needs(cls, settings: DfedsamSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Weights to the neighbours."""
        return Needs(("weights",))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, then averages."""
        s = self.settings
        trained = self.training.follow(
            weights, number, lambda _: SamRule(s.sgd(number), s.rho, s.adaptive)
        )
        averages = exchange.average(trained, s.averaging)
        return RoundResult(averages, [0] * len(averages))
