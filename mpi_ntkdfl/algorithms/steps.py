"""What methods with candidate numbers of steps share: their settings, the choice, and the NTK's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator

from mpi_ntkdfl.algorithms.base import require_finite
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.ntk.evolve import Evolution, evolve
from mpi_ntkdfl.ntk.evolve_batch import evolve_batch
from mpi_ntkdfl.ntk.update import best, candidate_weights, linearised_losses, network_losses
from mpi_ntkdfl.runtime.errors import Diverged

_WAY_OUT = (
    "lower algorithm.lr or algorithm.taus, look for extreme values in the data, or set "
    "on_divergence=continue"
)


class StepSettings(MethodSettings):
    """How far a round goes; the defaults are those of the NTK-DFL paper.

    `lr` is the time of one step; round k uses `lr * exp(-lr_decay * k)`. `taus` are the candidate
    numbers of steps; the one with the lowest loss is kept.
    """

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

    @field_validator("taus")
    @classmethod
    def _ascending(cls, taus: tuple[int, ...]) -> tuple[int, ...]:
        if list(taus) != sorted(set(taus)):
            raise ValueError("expected ascending, distinct numbers of steps")
        return taus

    def rate(self, number: int) -> float:
        """The learning rate of round `number`, from 0."""
        return self.lr * math.exp(-self.lr_decay * number)


class NtkSettings(StepSettings):
    """Settings of a step by the neural tangent kernel.

    The loss that chooses tau is that of the true network on the raw inputs (`network`, as the NTK-DFL
    authors' code does) or of the evolved outputs (`linearised`, which needs no raw inputs).
    `tolerance` bounds the relative error of the update that the integration of the evolution may add.
    """

    selection: Literal["network", "linearised"] = "network"
    tolerance: float = Field(default=1e-5, gt=0, lt=1)


def evolves(settings: MethodSettings) -> bool:
    """Whether a method with these settings integrates an evolution, which the squared loss needs not."""
    return isinstance(settings, NtkSettings) and settings.loss == "cross-entropy"


def keep_best(
    candidates: torch.Tensor, losses: list[float], taus: tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """The candidate `[param]` with the lowest of `losses`, and its tau.

    Args:
        candidates: `[tau, param]`.
        losses: of the candidates, `[tau]`.
        taus: their numbers of steps.

    Raises:
        Diverged: if no loss is finite, or the weights are not.
    """
    chosen = best(losses)
    if chosen < 0:
        raise Diverged(f"the loss became non-finite for every tau; {_WAY_OUT}")
    require_finite(candidates[chosen], "lower algorithm.lr or algorithm.taus")
    return candidates[chosen], taus[chosen]


def ntk_step(
    hood: Neighbourhood,
    w: torch.Tensor,
    lr: float,
    settings: NtkSettings,
    federation: Federation,
    evolved: Evolution | Diverged | None = None,
) -> tuple[torch.Tensor, int]:
    """Evolves the network with the kernel of `hood`, whose Jacobian was taken at `w` `[param]`.

    Kernel, evolution, candidate weights, choice: steps 4 to 7 of NTK-DFL, and the server's of NTK-FL.

    Args:
        hood: samples and Jacobian.
        w: where the Jacobian was taken.
        lr: learning rate of the round.
        settings: of the method.
        federation: for the network and the clock.
        evolved: the evolution, or why it failed, if `evolve_together` knows.

    Returns:
        The new weights `[param]` and the tau they belong to.

    Raises:
        Diverged: if a value became non-finite.
    """
    if isinstance(evolved, Diverged):
        raise evolved
    evolution = evolved or _evolve(hood, lr, settings, federation)
    with federation.clock("update"):
        products = hood.transposed_product(evolution.residual_sums)
        candidates = candidate_weights(w, products, lr, len(hood.labels))
    with federation.clock("select"):
        if settings.selection == "network":
            assert hood.inputs is not None
            losses = network_losses(
                federation.network, candidates, hood.inputs, hood.labels, settings.loss
            )
        else:
            losses = linearised_losses(evolution.outputs, hood.labels, settings.loss)
        return keep_best(candidates, losses, settings.taus)


def _evolve(hood: Neighbourhood, lr: float, s: NtkSettings, federation: Federation) -> Evolution:
    with federation.clock("kernel"):
        kernel = hood.kernel()
    with federation.clock("evolve"):
        targets = one_hot(hood.labels, hood.outputs.shape[1], hood.outputs.dtype)
        try:
            return evolve(
                kernel,
                hood.outputs,
                targets,
                lr,
                s.taus,
                s.loss,
                s.tolerance,
                overwrite=True,
                implementation=federation.evolution,
            )
        except ArithmeticError as error:
            raise _diverged(str(error)) from error


def _diverged(reason: str) -> Diverged:
    return Diverged(f"the evolution failed: {reason}; {_WAY_OUT}")


def evolve_together(
    hoods: Sequence[Neighbourhood], lr: float, s: NtkSettings, federation: Federation
) -> list[Evolution | Diverged | None]:
    """Evolves several neighbourhoods in one go, for `ntk_step`.

    None stands for those it leaves to `ntk_step`: a single one, the squared loss, which has a closed
    form, and all where the compiled evolution takes one client at a time.
    """
    if len(hoods) == 1 or s.loss == "squared" or federation.evolution == "compiled":
        return [None] * len(hoods)
    sizes, classes = [len(hood.labels) for hood in hoods], hoods[0].outputs.shape[1]
    most = max(sizes)
    outputs = hoods[0].outputs.new_zeros(len(hoods), most, classes)
    targets = torch.zeros_like(outputs)
    with federation.clock("kernel"):
        kernels = outputs.new_zeros(len(hoods), most, most)
        for place, hood in enumerate(hoods):
            kernels[place, : sizes[place], : sizes[place]] = hood.kernel()
    with federation.clock("evolve"):
        for place, hood in enumerate(hoods):
            outputs[place, : sizes[place]] = hood.outputs
            targets[place, : sizes[place]] = one_hot(hood.labels, classes, outputs.dtype)
        batch = evolve_batch(kernels, outputs, targets, sizes, lr, s.taus, s.tolerance)
        return [
            _diverged(batch.failures[place])
            if batch.failures[place]
            else Evolution(
                s.taus,
                batch.residual_sums[place, :, :samples],
                batch.outputs[place, :, :samples],
                batch.products,
            )
            for place, samples in enumerate(sizes)
        ]
