"""A method in the style of SPARK (arXiv 2512.12737), whose full text and code were not at hand.

From its abstracts: NTK-DFL with Jacobians that are projected layer by layer, soft labels that are phased
in, and Nesterov's momentum. Everything else is a guess: the form of the soft labels and of the momentum,
the temperature, and all default values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.aids import remembered
from mpi_ntkdfl.algorithms.base import Needs, RoundResult
from mpi_ntkdfl.algorithms.ntk_dfl import NeighbourhoodNtk, NtkDflSettings
from mpi_ntkdfl.config.sections import MOST_ROUNDS
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.looks import VERMILION, LineStyle


class SparkStyleSettings(NtkDflSettings):
    """Settings of NTK-DFL, soft labels and momentum; the defaults of the latter are guesses."""

    name: Literal["spark-style"] = "spark-style"  # type: ignore[assignment]  # another method's name
    jacobian: Literal["inputs", "factored", "dense", "projected"] = "projected"
    nesterov: float = Field(default=0.5, ge=0, lt=1)
    """Factor b of the momentum: v <- b v + s for the step s of a round. The client moves by s + b v."""
    soft_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the soft labels in the targets after they are phased in. 0 keeps the one-hot labels."""
    soft_from: int = Field(default=5, ge=0, le=MOST_ROUNDS)
    """The first round, from 0, whose targets contain soft labels."""
    soft_rounds: int = Field(default=10, ge=1, le=MOST_ROUNDS)
    """Rounds over which the share of the soft labels rises linearly to `soft_share`."""
    temperature: float = Field(default=2.0, gt=0, le=1e6)
    """Soft labels are softmax(outputs / temperature) at the point of linearisation."""

    def softness(self, number: int) -> float:
        """The share of the soft labels in round `number`; the first is 0."""
        return self.soft_share * min(
            max((number + 1 - self.soft_from) / self.soft_rounds, 0.0), 1.0
        )

    def targets(self, labels: torch.Tensor, outputs: torch.Tensor, number: int) -> torch.Tensor:
        """`(1 - a) Y + a softmax(f / T)`, `[sample, output]`, with a = `softness`."""
        hard, share = super().targets(labels, outputs, number), self.softness(number)
        if not share:
            return hard
        return torch.lerp(hard, torch.softmax(outputs / self.temperature, dim=1), share)


class SparkStyle(NeighbourhoodNtk[SparkStyleSettings]):
    """NTK-DFL with projected Jacobians, soft labels, and momentum over the rounds' steps."""

    Settings = SparkStyleSettings
    label = "SPARK-style"
    look = LineStyle(VERMILION, (1, 1, 4, 1), "x")

    def __init__(self, settings: SparkStyleSettings, federation: Federation) -> None:
        """Starts without velocity."""
        super().__init__(settings, federation)
        self.velocity = self.no_vectors() if settings.nesterov else None

    @classmethod
    def needs(cls, settings: SparkStyleSettings, network: Network, dtype: torch.dtype) -> Needs:
        """As NTK-DFL; the velocity is kept."""
        needs = super().needs(settings, network, dtype)
        return replace(needs, kept=remembered(settings.nesterov, network, dtype, needs.kept))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Average, step, and momentum. A client that diverged stays at its average."""
        w_bar = self.average(weights, exchange)
        result = self.step(w_bar, number, exchange)
        if self.velocity is None:
            return result
        moved = torch.tensor([tau > 0 for tau in result.taus], device=w_bar.device)[:, None]
        factor, steps = self.settings.nesterov, result.weights - w_bar
        self.velocity = torch.where(moved, factor * self.velocity + steps, self.velocity)
        new = torch.where(moved, result.weights + factor * self.velocity, result.weights)
        return RoundResult(new, result.taus)

    def state(self) -> dict[str, torch.Tensor]:
        """The velocities, `[owned, param]`, and what NTK-DFL carries."""
        own = {} if self.velocity is None else {"velocity": self.velocity}
        return {**super().state(), **own}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` returned."""
        super().restore(state)
        if self.velocity is not None:
            self.velocity = state["velocity"].to(self.velocity)
