"""The control of NTK-DFL: average, then plain full-batch gradient descent instead of the NTK's evolution.

It takes as many steps with the same learning rate, and chooses tau in the same way. On a client's own
data it lacks what the neighbours' data add and what the kernel adds. On the data of the closed
neighbourhood it lacks the kernel only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.aids import CarriesMomentum, RoundMomentum, calibration_shift, remembered
from mpi_ntkdfl.algorithms.base import Leg, Method, Needs, RoundResult, may_diverge
from mpi_ntkdfl.algorithms.steps import StepSettings, keep_best
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.update import network_losses
from mpi_ntkdfl.runtime.looks import GREY, LineStyle
from mpi_ntkdfl.topology.mixing import Averaging


class AverageGdSettings(StepSettings):
    """Settings of the control."""

    name: Literal["average-gd"] = "average-gd"
    data: Literal["own", "neighbourhood"] = "own"
    """The samples on which a client descends and chooses tau: its `own`, or those of its closed
    `neighbourhood`, which are then sent as they are.
    """
    averaging: Averaging = "plain"
    """Weights of the average over the neighbourhood: equal (`plain`), or in proportion to the
    clients' samples (`samples`), or Metropolis weights (`metropolis`), which keep the mean of all
    clients on graphs of unequal degrees.
    """
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Descent starts at a + momentum (a - a'), where a is the client's average and a' its average of
    the round before.
    """


class AverageGd(CarriesMomentum, Method[AverageGdSettings]):
    """Averaging, then gradient descent."""

    Settings = AverageGdSettings
    label = "Average-GD"
    look = LineStyle(GREY, (1.2, 1.2), "<")

    def __init__(self, settings: AverageGdSettings, federation: Federation) -> None:
        """Prepares the method; with momentum, it carries the averages of the last round."""
        super().__init__(settings, federation)
        self.loss = settings.loss
        self.momentum = RoundMomentum(settings.momentum, self.no_vectors(), "averages")

    @classmethod
    def needs(cls, settings: AverageGdSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Weights, and raw samples if clients descend on the samples of their neighbours."""
        shared = settings.data == "neighbourhood"
        kept = remembered(settings.momentum, network, dtype)
        # Samples do not depend on the average, so they travel with the weights.
        leg = Leg(("weights", *(("inputs", "labels") if shared else ())))
        taus = len(settings.taus)
        return Needs(("weights",), samples=shared, taus=taus, kept=kept, legs=(leg,))

    @classmethod
    def work(cls, settings: AverageGdSettings, load: Load) -> dict[str, Work]:
        """Full-batch steps, as the network takes them."""
        samples = load.gathered if settings.data == "neighbourhood" else load.own
        steps, step = settings.taus[-1], load.network.work.descent(samples)
        passed = steps * load.itemsize * step.numbers
        return {"train": Work(steps * step.operations, passed, steps * 20 + load.nothing)}

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        s, f = self.settings, self.federation
        w_bar = exchange.average(weights, s.averaging)
        point = self.momentum.point(w_bar)
        new, taus = w_bar.clone(), [0] * len(w_bar)
        data: Iterable[tuple[int, Samples]] = f.samples.items()
        if s.data == "neighbourhood":
            data = exchange.samples(len(s.taus))
        for client, samples in data:
            row = client - f.owned.start
            with may_diverge(f, number, client):
                new[row], taus[row] = self._descend(point[row], samples, s.rate(number))
        return RoundResult(new, taus)

    def _descend(self, w: torch.Tensor, data: Samples, lr: float) -> tuple[torch.Tensor, int]:
        s, f = self.settings, self.federation
        with f.clock("evolve"):
            shift = calibration_shift(data.labels, f.network.classes, s.calibration, f.dtype)
            candidates = self.candidates(w, data, lr, shift)
        with f.clock("select"):
            losses = network_losses(f.network, candidates, data.inputs, data.labels, s.loss, shift)
            return keep_best(candidates, losses, s.taus)

    def candidates(
        self, w: torch.Tensor, data: Samples, lr: float, shift: torch.Tensor | None
    ) -> torch.Tensor:
        """The weights `[tau, param]` after each number of steps from `w` `[param]`."""
        s, network = self.settings, self.federation.network
        return network.descend(w, data.inputs, data.labels, lr, s.taus, s.loss, shift)
