"""DisPFL (Dai et al., "DisPFL", ICML 2022): every client keeps a sparse model of its own.

A client trains within its mask. It then drops its smallest weights from the mask and adds the same
number of others. It averages every entry of the new mask over those of its neighbourhood that have
trained this entry. So an added entry starts from the neighbours' average, or from 0 if none has it.

The models are personal: clients keep different weights. The record also has the average of all clients,
in which missing entries count as zeros; DisPFL itself would not use such a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Leg, Needs, RoundResult
from mpi_ntkdfl.algorithms.masks import kept_entries, masked_average, masked_format
from mpi_ntkdfl.algorithms.training import (
    Batch,
    Decay,
    Epochs,
    Factor,
    Rate,
    SendingSettings,
    TrainingMethod,
)
from mpi_ntkdfl.config.sections import MOST_ROUNDS
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.codecs.base import Shapes
from mpi_ntkdfl.federation.coding import vector_format
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.training import Gradient, Layers, Sgd, SgdRule
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.looks import SKY, LineStyle


class DispflSettings(SendingSettings):
    """Settings of DisPFL; the defaults are those of the NTK-DFL paper's comparison.

    The peers are the neighbours in the round's graph. In the original each client
    draws 5 random peers; a dynamic 5-regular graph draws them mutually.
    """

    feedback: ClassVar[bool] = False
    changes: ClassVar[bool] = False

    name: Literal["dispfl"] = "dispfl"
    lr: Rate = 0.1
    lr_factor: Factor = 0.998
    batch: Batch = 10
    epochs: Epochs = 10
    weight_decay: Decay = 5e-4
    dense_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of all parameters that a client keeps. Small layers are denser, and biases are kept."""
    anneal_factor: float = Field(default=0.5, ge=0, le=1)
    """Round k exchanges anneal_factor / 2 * (1 + cos(pi k / anneal_rounds)) of a layer's kept
    weights for others.
    """
    anneal_rounds: int = Field(default=30, ge=1, le=MOST_ROUNDS)
    """From this round on, no weights are exchanged for others. Set it to the number of rounds of
    the run.
    """
    first_masks: Literal["shared", "own"] = "shared"
    """Whether all clients start with one random mask or each with its own."""
    growth: Literal["random", "gradient"] = "random"
    """Which entries enter a mask: random ones, or those with the largest gradients of the own loss."""

    def exchanged(self, number: int) -> float:
        """Share of a layer's kept weights that round `number` exchanges for others."""
        phase = math.pi * min(number / self.anneal_rounds, 1)
        return self.anneal_factor / 2 * (1 + math.cos(phase))


class MaskedRule:
    """SGD that leaves entries outside the masks at 0. See `Rule`."""

    def __init__(self, sgd: Sgd, masks: Layers) -> None:
        """Starts without velocity; `masks` are arrays of ones and zeros, as `layers` are."""
        self._rule, self._masks = SgdRule(sgd), masks

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place."""
        self._rule.step(layers, gradient)
        for layer, mask in zip(layers, self._masks, strict=True):
            layer.mul_(mask)


class Dispfl(TrainingMethod[DispflSettings]):
    """Local training within masks, a change of masks, then masked averaging."""

    Settings = DispflSettings
    label = "DisPFL"
    look = LineStyle(SKY, (3, 1, 1, 1, 1, 1), "P")
    plain_sgd = False

    def __init__(self, settings: DispflSettings, federation: Federation) -> None:
        """Draws every client's first mask."""
        super().__init__(settings, federation)
        self.layout = federation.network.layout
        self.kept = kept_entries(self.layout, settings.dense_ratio)
        self.masks = torch.stack([self._first_mask(client) for client in federation.owned])

    @classmethod
    def needs(cls, settings: DispflSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Kept weights and masks go to the neighbours."""
        (shape,) = cls.coded_shapes(settings, network)
        values = vector_format(settings.codecs, "weights", (shape,), dtype)
        form = masked_format(values, network.layout.size)
        leg = Leg(("weights",), ("train",))
        return Needs(messages=(form,), kept=lambda _: network.layout.size, legs=(leg,))

    @classmethod
    def coded_shapes(cls, settings: DispflSettings, network: Network) -> Shapes:
        """The kept weights."""
        return ((sum(kept_entries(network.layout, settings.dense_ratio).values()),),)

    def state(self) -> dict[str, torch.Tensor]:
        """The masks, `[owned, param]` bool."""
        return {"masks": self.masks}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back the masks."""
        self.masks = state["masks"].to(self.masks)

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        masks, trained = self.masks, self.train(weights * self.masks, number)
        with self.federation.clock("select"):
            rows = zip(self.federation.owned, trained, self.masks, strict=True)
            self.masks = torch.stack([self._next_mask(*row, number) for row in rows])
        averages = masked_average(exchange, trained, masks, self.masks)
        return RoundResult(averages)

    def train(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        """Local passes of SGD within the masks."""
        sgd, masks = self.settings.sgd(number), self.masks.to(weights.dtype)
        return self.training.follow(weights, number, lambda pack: MaskedRule(sgd, pack(masks)))

    def _first_mask(self, client: int) -> torch.Tensor:
        """A random mask `[param]` of the right density in every tensor."""
        drawn_by = client if self.settings.first_masks == "own" else 0
        rng = seeds.generator(self.federation.seed, "masks", drawn_by)
        mask = torch.zeros(self.layout.size, dtype=torch.bool)
        for piece, count in zip(
            torch.split(mask, list(self.layout.sizes)), self.kept.values(), strict=True
        ):
            piece[torch.from_numpy(rng.permutation(len(piece))[:count])] = True
        return mask.to(self.federation.device)

    def _next_mask(
        self, client: int, weights: torch.Tensor, mask: torch.Tensor, number: int
    ) -> torch.Tensor:
        """Drops the smallest weights `[param]` of each layer, and adds as many entries."""
        if not self.federation.sizes[client]:
            return mask
        mask, sizes = mask.clone(), list(self.layout.sizes)
        wanted = self._wanted(client, weights, number)
        share = self.settings.exchanged(number)
        pieces = (torch.split(row, sizes) for row in (mask, weights, wanted))
        for kept, values, want, count in zip(*pieces, self.kept.values(), strict=True):
            if count == len(kept):
                continue
            change = math.ceil(share * count)
            sizes_kept = torch.where(kept, values.abs(), math.inf)
            kept[sizes_kept.topk(change, largest=False).indices] = False
            kept[torch.where(kept, -1, want).topk(change).indices] = True
        return mask

    def _wanted(self, client: int, weights: torch.Tensor, number: int) -> torch.Tensor:
        """Numbers `[param]` of at least 0; the entries with the largest ones are added first."""
        f = self.federation
        rng = seeds.generator(f.seed, "regrowth", client, number)
        if self.settings.growth == "random":
            return torch.from_numpy(rng.permutation(self.layout.size)).to(f.device)
        own, size = f.samples[client], int(f.sizes[client])
        batch = torch.from_numpy(rng.permutation(size)[: self.settings.batch]).to(f.device)
        # The gradient of a random batch's loss, also for entries outside the mask.
        return f.network.loss_gradient(
            weights, own.inputs[batch], own.labels[batch], self.loss
        ).abs()
