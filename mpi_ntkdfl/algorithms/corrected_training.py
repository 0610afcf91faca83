"""The local steps of methods that add a correction to every gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch

from mpi_ntkdfl.algorithms.base import Needs
from mpi_ntkdfl.algorithms.training import AveragingSettings, TrainingMethod
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.training import Gradient, Layers, Pack, Rule, Sgd, SgdRule, Slope


@dataclass(frozen=True)
class CorrectedSlope:
    """A gradient plus a correction. See `Slope`."""

    slope: Slope
    correction: torch.Tensor

    def add_to(self, array: torch.Tensor, keep: float, times: float) -> None:
        """`array = keep * array + times * (gradient + correction)`, in place."""
        self.slope.add_to(array, keep, times)
        array.add_(self.correction, alpha=times)

    def dense(self) -> torch.Tensor:
        """The sum."""
        return self.slope.dense().add_(self.correction)


class CorrectedRule:
    """SGD along gradient + correction + pull * (weights - weights at the start). See `Rule`."""

    def __init__(self, sgd: Sgd, corrections: Layers, pull: float = 0.0) -> None:
        """Starts without velocity; `corrections` are arrays with the shapes of `layers`."""
        self._rule, self._corrections, self._pull = SgdRule(sgd), corrections, pull
        self._start: Layers = []

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place."""
        corrections = self._corrections
        if self._pull:
            self._start = self._start or [layer.clone() for layer in layers]
            corrections = [
                torch.add(correction, layer - start, alpha=self._pull)
                for correction, layer, start in zip(corrections, layers, self._start, strict=True)
            ]
        pairs = zip(gradient(layers), corrections, strict=True)
        self._rule.descend(layers, [CorrectedSlope(*pair) for pair in pairs])


SettingsT = TypeVar("SettingsT", bound=AveragingSettings)


class CorrectedTraining(TrainingMethod[SettingsT]):
    """A method that carries one vector per client, from which its corrections follow.

    Attributes:
        vectors: how many vectors a client sends to each neighbour per round.
        carried_name: name of the carried vectors in checkpoints.
        carried: the vectors, `[owned, param]`.
    """

    plain_sgd = False
    vectors: ClassVar[int] = 1
    carried_name: ClassVar[str]

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Starts with zeros."""
        super().__init__(settings, federation)
        self.carried = self.no_vectors()

    @classmethod
    def needs(cls, settings: SettingsT, network: Network, dtype: torch.dtype) -> Needs:
        """Vectors go to the neighbours; one is carried."""
        carried = network.layout.size * dtype.itemsize
        return Needs(("weights",) * cls.vectors, kept=lambda _: carried)

    def follow(
        self, weights: torch.Tensor, number: int, corrections: torch.Tensor, pull: float = 0.0
    ) -> torch.Tensor:
        """The weights `[owned, param]` after the corrected local steps of round `number`."""
        sgd = self.settings.sgd(number)

        def rule(pack: Pack) -> Rule:
            return CorrectedRule(sgd, pack(corrections), pull)

        return self.training.follow(weights, number, rule)

    def step_times(self, number: int) -> torch.Tensor:
        """Learning rate times the number of local steps of each client, `[owned, 1]`."""
        s, f = self.settings, self.federation
        sizes = torch.tensor([int(f.sizes[client]) for client in f.owned])
        steps = s.epochs * torch.ceil(sizes.double() / s.batch).clamp_(min=1)
        return (steps * s.sgd(number).lr).to(device=f.device, dtype=f.dtype)[:, None]

    def state(self) -> dict[str, torch.Tensor]:
        """The carried vectors, `[owned, param]`."""
        return {self.carried_name: self.carried}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back the carried vectors."""
        self.carried = state[self.carried_name].to(self.carried)
