"""NTK-DFL (Thompson, Yue, Wong, Dai, "NTK-DFL", ICML 2025): average, then evolve with the NTK.

Weights to the neighbours and averaged; the average back to the neighbours; their Jacobians at it; the
neighbourhood's kernel; evolution of its outputs in function space; the weights that follow from it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator

from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.comm.exchange import (
    Exchange,
    Federation,
    Neighbourhood,
    dense_entries,
    dense_heading,
    factored_format,
)
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.errors import SimulationError, locating
from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.model.nets import MLP
from mpi_ntkdfl.ntk.evolve import Evolution, evolve
from mpi_ntkdfl.ntk.update import best, candidate_weights, linearised_losses, network_losses

_WAY_OUT = "lower algorithm.lr or algorithm.taus, or look for extreme values in the data"


class NtkDflSettings(MethodSettings):
    """Settings of NTK-DFL; the defaults are the paper's.

    `lr` is the time of one evolution step; round k uses `lr * exp(-lr_decay * k)`. `taus` are the
    candidate numbers of steps; a client keeps the one with the lowest loss, of the true network on
    the neighbourhood's inputs (`network`, as the authors' code does) or of the evolved outputs
    (`linearised`, which needs no raw inputs). `tolerance` bounds the relative error of the update
    that the integration of the evolution may add.
    """

    name: Literal["ntk-dfl"] = "ntk-dfl"
    lr: float = Field(default=0.01, gt=0)
    lr_decay: float = Field(default=0.07, ge=0)
    taus: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] = (
        100,
        200,
        400,
        600,
        800,
    )
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    jacobian: Literal["factored", "dense"] = "factored"
    selection: Literal["network", "linearised"] = "network"
    averaging: Literal["plain", "samples"] = "plain"
    tolerance: float = Field(default=1e-5, gt=0, lt=1)

    @field_validator("taus")
    @classmethod
    def _ascending(cls, taus: tuple[int, ...]) -> tuple[int, ...]:
        if list(taus) != sorted(set(taus)):
            raise ValueError("expected ascending, distinct numbers of steps")
        return taus


class NtkDfl(Method):
    """The method of the paper."""

    Settings = NtkDflSettings

    def __init__(self, settings: MethodSettings, federation: Federation) -> None:
        """Prepares the method; it carries no state from round to round but the weights."""
        assert isinstance(settings, NtkDflSettings)
        self.settings = settings
        self.federation = federation
        self.loss = settings.loss

    @staticmethod
    def needs(settings: MethodSettings, network: MLP, dtype: torch.dtype) -> Needs:
        """Weights and averages as vectors; layer inputs, or heading and entries, as blocks."""
        assert isinstance(settings, NtkDflSettings)
        vectors, taus = ("weights", "averages"), len(settings.taus)
        if settings.jacobian == "factored":
            return Needs(vectors, blocks=(factored_format(network, dtype),), taus=taus)
        heading = dense_heading(network, dtype, inputs=settings.selection == "network")
        entries = dense_entries(network, dtype, network.layout.size)
        return Needs(vectors, blocks=(heading, entries), dense=True, taus=taus)

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        s = self.settings
        lr = s.lr * math.exp(-s.lr_decay * number)
        w_bar = exchange.average(weights, s.averaging)
        new, taus = torch.empty_like(w_bar), []
        first = self.federation.owned.start
        for hood in exchange.neighbourhoods(
            w_bar, s.jacobian, inputs=s.selection == "network", taus=len(s.taus)
        ):
            with locating(client=hood.client, round=number):
                row = hood.client - first
                evolution = self._evolve(hood, lr)
                new[row], tau = self._update(hood, evolution, w_bar[row], lr)
                taus.append(tau)
        return RoundResult(new, taus)

    def _evolve(self, hood: Neighbourhood, lr: float) -> Evolution:
        """Kernel and evolution of one neighbourhood (steps 4 and 5 of the paper)."""
        s, clock = self.settings, self.federation.clock
        with clock("kernel"):
            kernel = hood.kernel()
        with clock("evolve"):
            targets = one_hot(hood.labels, hood.outputs.shape[1], hood.outputs.dtype)
            try:
                return evolve(kernel, hood.outputs, targets, lr, s.taus, s.loss, s.tolerance)
            except ArithmeticError as error:
                raise SimulationError(f"the evolution failed: {error}; {_WAY_OUT}") from error

    def _update(
        self, hood: Neighbourhood, evolution: Evolution, w_bar: torch.Tensor, lr: float
    ) -> tuple[torch.Tensor, int]:
        """The candidate weights with the lowest loss, and their tau (steps 6 and 7)."""
        s, f = self.settings, self.federation
        with f.clock("update"):
            products = hood.transposed_product(evolution.residual_sums)
            candidates = candidate_weights(w_bar, products, lr, len(hood.labels))
        with f.clock("select"):
            if s.selection == "network":
                assert hood.inputs is not None
                losses = network_losses(f.network, candidates, hood.inputs, hood.labels, s.loss)
            else:
                losses = linearised_losses(evolution.outputs, hood.labels, s.loss)
            chosen = best(losses)
        if chosen < 0 or not bool(torch.isfinite(candidates[chosen]).all()):
            raise SimulationError(f"the client's weights or loss became non-finite; {_WAY_OUT}")
        return candidates[chosen], s.taus[chosen]
