"""DisPFL (Dai et al., "DisPFL", ICML 2022): every client keeps a sparse model of its own.

A client trains within its mask, gives up its smallest weights, takes up as many others where its loss
is steepest, and averages every entry it keeps over those neighbours that keep it too.

The models are personal: they differ in which weights they have at all. The record's average of all
clients is the mean of differently masked models, absent entries counted as zeros; it is no model that
DisPFL itself would use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.algorithms.train_then_average import TrainingSettings
from mpi_ntkdfl.federation.averages import masked_average, masked_format
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.model.training import Gradient, Layers, Sgd, SgdRule
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError


class DispflSettings(TrainingSettings):
    """Settings of DisPFL; the defaults are those of the NTK-DFL paper's comparison.

    `dense_ratio` is the share of all parameters a client keeps. In round k it exchanges
    `anneal_factor / 2 * (1 + cos(pi k / anneal_rounds))` of a layer's weights, none from
    `anneal_rounds` on. The peers are the neighbours in the round's graph: where each client of the
    original draws 5 random peers of its own, a dynamic 5-regular graph draws them mutually.
    """

    name: Literal["dispfl"] = "dispfl"
    lr: float = Field(default=0.1, gt=0)
    lr_factor: float = Field(default=0.998, gt=0)
    batch: int = Field(default=10, ge=1)
    epochs: int = Field(default=10, ge=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    dense_ratio: float = Field(default=0.5, gt=0, le=1)
    anneal_factor: float = Field(default=0.5, ge=0, le=1)
    anneal_rounds: int = Field(default=30, ge=1)

    def exchanged(self, number: int) -> float:
        """Share of a layer's kept weights that round `number` exchanges for others."""
        phase = math.pi * min(number / self.anneal_rounds, 1)
        return self.anneal_factor / 2 * (1 + math.cos(phase))


def kept_entries(layout: Layout, dense_ratio: float) -> dict[str, int]:
    """How many entries of each tensor a client keeps, by the Erdos-Renyi kernel.

    Densities are in proportion to (fan_in + fan_out) / (fan_in fan_out), at most 1, so that small
    layers are denser (Evci et al., "Rigging the lottery", ICML 2020). Biases are kept.

    Raises:
        InputError: if `dense_ratio` leaves no room for weights beside the biases.
    """
    kept = dict(zip(layout.shapes, layout.sizes, strict=True))
    sparse = [name for name, shape in layout.shapes.items() if len(shape) > 1]
    while sparse:
        room = dense_ratio * layout.size - sum(kept[name] for name in kept if name not in sparse)
        # Density is scale * sum(shape) / prod(shape), so entries are scale * sum(shape).
        scale = room / sum(sum(layout.shapes[name]) for name in sparse)
        entries = {name: scale * sum(layout.shapes[name]) for name in sparse}
        full = [name for name in sparse if entries[name] >= kept[name]]
        if not full:
            kept |= {name: round(count) for name, count in entries.items()}
            break
        sparse = [name for name in sparse if name not in full]
    if min(kept.values()) < 1:
        raise InputError(
            f"algorithm.dense_ratio must leave every layer a weight beside the biases, got "
            f"{dense_ratio} of {layout.size} parameters; raise it"
        )
    return kept


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


class Dispfl(Method[DispflSettings]):
    """Masked local training, a change of masks, then masked averaging."""

    Settings = DispflSettings

    def __init__(self, settings: DispflSettings, federation: Federation) -> None:
        """Draws every client's first mask."""
        super().__init__(settings, federation)
        self.layout = federation.network.layout
        self.kept = kept_entries(self.layout, settings.dense_ratio)
        self.training = LocalTraining(federation, settings.batch, settings.epochs)
        self.masks = torch.stack([self._first_mask(client) for client in federation.owned])

    @classmethod
    def needs(cls, settings: DispflSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Kept weights and masks to the neighbours."""
        kept = sum(kept_entries(network.layout, settings.dense_ratio).values())
        form = masked_format(kept, network.layout.size, dtype)
        return Needs(messages=(form,), kept=lambda _: network.layout.size)

    def state(self) -> dict[str, torch.Tensor]:
        """The masks, `[owned, param]` bool."""
        return {"masks": self.masks}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back the masks."""
        self.masks = state["masks"].to(self.masks)

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        sgd = self.settings.sgd(number)
        trained = self.training.follow(
            weights * self.masks,
            number,
            lambda pack: MaskedRule(sgd, pack(self.masks.to(weights.dtype))),
        )
        with self.federation.clock("select"):
            rows = zip(self.federation.owned, trained, self.masks, strict=True)
            self.masks = torch.stack([self._next_mask(*row, number) for row in rows])
        averages = masked_average(exchange, trained * self.masks, self.masks)
        return RoundResult(averages, [0] * len(averages))

    def _first_mask(self, client: int) -> torch.Tensor:
        """A random mask `[param]` of the right density in every tensor."""
        rng = seeds.generator(self.federation.seed, "masks", client)
        mask = torch.zeros(self.layout.size, dtype=torch.bool)
        for piece, count in zip(
            torch.split(mask, list(self.layout.sizes)), self.kept.values(), strict=True
        ):
            piece[torch.from_numpy(rng.permutation(len(piece))[:count])] = True
        return mask.to(self.federation.device)

    def _next_mask(
        self, client: int, weights: torch.Tensor, mask: torch.Tensor, number: int
    ) -> torch.Tensor:
        """Drops the smallest weights `[param]` of each layer and takes up those of steepest loss."""
        if not self.federation.sizes[client]:
            return mask
        mask, sizes = mask.clone(), list(self.layout.sizes)
        slopes = self._gradient(client, weights, number).abs()
        share = self.settings.exchanged(number)
        pieces = (torch.split(row, sizes) for row in (mask, weights, slopes))
        for kept, values, slope, count in zip(*pieces, self.kept.values(), strict=True):
            if count == len(kept):
                continue
            change = math.ceil(share * count)
            sizes_kept = torch.where(kept, values.abs(), math.inf)
            kept[sizes_kept.topk(change, largest=False).indices] = False
            kept[torch.where(kept, -1, slope).topk(change).indices] = True
        return mask

    def _gradient(self, client: int, weights: torch.Tensor, number: int) -> torch.Tensor:
        """Gradient `[param]` at `weights` of a random batch's loss, entries outside the mask included."""
        f = self.federation
        own, size = f.samples[client], int(f.sizes[client])
        rng = seeds.generator(f.seed, "regrowth", client, number)
        batch = torch.from_numpy(rng.permutation(size)[: self.settings.batch]).to(f.device)
        return f.network.loss_gradient(weights, own.inputs[batch], own.labels[batch], self.loss)
