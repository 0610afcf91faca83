"""Code of all methods with candidate numbers of steps: settings, the choice, the NTK's step, its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from mpi_ntkdfl.algorithms.aids import calibration_shift
from mpi_ntkdfl.algorithms.base import require_finite
from mpi_ntkdfl.algorithms.coded import CodedSettings
from mpi_ntkdfl.algorithms.work import Work
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.model.losses import Loss, loss_value, one_hot
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.evolve import Evolution, evolve
from mpi_ntkdfl.ntk.evolve_batch import evolve_batch
from mpi_ntkdfl.ntk.update import best, candidate_weights, linearised_losses, network_losses
from mpi_ntkdfl.runtime.errors import Diverged
from mpi_ntkdfl.runtime.settings import a_list

_PASSES_PER_INNER_STEP, _CALLS_PER_EVOLUTION = 45, 100

_WAY_OUT = (
    "lower algorithm.lr or algorithm.taus, look for extreme values in the data, or set "
    "on_divergence=continue"
)


class StepSettings(CodedSettings):
    """Settings of a round's steps; the defaults are those of the NTK-DFL paper."""

    changes: ClassVar[bool] = False

    lr: float = Field(default=0.01, gt=0, le=1e30)
    """Learning rate: the time of one step. Round k uses lr * exp(-lr_decay * k), k from 0."""
    lr_decay: float = Field(default=0.07, ge=0, le=100)
    """How fast the learning rate decays over rounds."""
    taus: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
        Field(strict=False, min_length=1, max_length=1000),
        a_list("[100, 200]"),
    ] = (100, 200, 400, 600, 800)
    """Candidate numbers of steps. A client keeps the candidate with the lowest loss."""
    loss: Loss = "cross-entropy"
    """The training loss. The squared loss has a closed form."""
    calibration: float = Field(default=0.0, ge=0, le=100)
    """Calibration * log(share of the class among the samples of the step) is added to the outputs, in
    the training loss and in the loss that chooses tau. 0 adds nothing, 1 is logit adjustment for label
    skew. It needs the cross-entropy loss.
    """

    @field_validator("taus")
    @classmethod
    def _ascending(cls, taus: tuple[int, ...]) -> tuple[int, ...]:
        if list(taus) != sorted(set(taus)):
            raise ValueError("expected ascending, distinct numbers of steps")
        return taus

    @model_validator(mode="after")
    def _shifts_need_softmax(self) -> StepSettings:
        if self.calibration and self.loss == "squared":
            raise ValueError(
                f"calibration needs loss=cross-entropy, got calibration {self.calibration} with "
                "loss=squared; leave out one of them"
            )
        return self

    def shift(self, labels: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor | None:
        """What calibration adds to the outputs `[sample, output]` of samples with these labels."""
        return calibration_shift(labels, outputs.shape[1], self.calibration, outputs.dtype)

    def rate(self, number: int) -> float:
        """The learning rate of round `number`; the first is 0."""
        return self.lr * math.exp(-self.lr_decay * number)


class NtkSettings(StepSettings):
    """Settings of a step by the neural tangent kernel."""

    selection: Literal["network", "linearised"] = "network"
    """Which loss chooses tau: that of the true network on the raw inputs (`network`, as in the
    authors' code), or that of the evolved outputs (`linearised`, which needs no raw inputs).
    """
    tolerance: float = Field(default=1e-5, gt=0, lt=1)
    """Bound on the relative error of a round's update that the integration may add."""

    def targets(self, labels: torch.Tensor, outputs: torch.Tensor, number: int) -> torch.Tensor:
        """The targets of the evolution, `[sample, output]`: the one-hot labels.

        Args:
            labels: `[sample]` int64.
            outputs: outputs at the point of linearisation, `[sample, output]`.
            number: number of the round, from 0.
        """
        return one_hot(labels, outputs.shape[1], outputs.dtype)


def evolves(settings: MethodSettings) -> bool:
    """Whether a method with these settings integrates an evolution; the squared loss needs none."""
    return isinstance(settings, NtkSettings) and settings.loss == "cross-entropy"


def keep_best(
    candidates: torch.Tensor, losses: list[float], taus: tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """The candidate `[param]` with the lowest of `losses`, and its tau.

    Args:
        candidates: `[tau, param]`.
        losses: the losses of the candidates, `[tau]`.
        taus: the numbers of steps of the candidates.

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
    number: int,
    settings: NtkSettings,
    federation: Federation,
    evolved: Evolution | Diverged | None = None,
    must_improve: bool = False,
) -> tuple[torch.Tensor, int]:
    """Evolves the network with the kernel of `hood`, whose Jacobian was taken at `w` `[param]`.

    This computes kernel, evolution, candidate weights and the choice: steps 4 to 7 of NTK-DFL, and the
    server's step of NTK-FL.

    Args:
        hood: samples and Jacobian.
        w: the point at which the Jacobian was taken.
        number: number of the round, from 0.
        settings: the settings of the method.
        federation: provides the network and the clock.
        evolved: the result of `evolve_together`: the evolution, or the reason why it failed, or None.
        must_improve: whether `w` is kept, with tau 0, if no candidate has a lower loss.

    Returns:
        The new weights `[param]` and their tau.

    Raises:
        Diverged: if a value became non-finite.
    """
    if isinstance(evolved, Diverged):
        raise evolved
    evolution = evolved or _evolve(hood, number, settings, federation)
    lr = settings.rate(number)
    with federation.clock("update"):
        products = hood.transposed_product(evolution.residual_sums)
        candidates = candidate_weights(w, products, lr, len(hood.labels))
    with federation.clock("select"):
        losses = _losses(hood, candidates, evolution, settings, federation.network)
        if must_improve:
            before = float(loss_value(_outputs(hood, settings), hood.labels, settings.loss))
            if not min(losses) < before:
                return w, 0
        return keep_best(candidates, losses, settings.taus)


def _outputs(hood: Neighbourhood, s: NtkSettings) -> torch.Tensor:
    """The outputs in the training loss at the point of linearisation, `[sample, output]`."""
    shift = s.shift(hood.labels, hood.outputs)
    return hood.outputs if shift is None else hood.outputs + shift


def _losses(
    hood: Neighbourhood,
    candidates: torch.Tensor,
    evolution: Evolution,
    s: NtkSettings,
    network: Network,
) -> list[float]:
    """The losses that choose tau, one for each of `candidates` `[tau, param]`."""
    if s.selection == "linearised":
        return linearised_losses(evolution.outputs, hood.labels, s.loss)
    assert hood.inputs is not None
    shift, labels = s.shift(hood.labels, hood.outputs), hood.labels[hood.held]
    return network_losses(network, candidates, hood.inputs, labels, s.loss, shift)


def _evolve(hood: Neighbourhood, number: int, s: NtkSettings, federation: Federation) -> Evolution:
    with federation.clock("kernel"):
        kernel = hood.kernel()
    with federation.clock("evolve"):
        targets = s.targets(hood.labels, hood.outputs, number)
        try:
            return evolve(
                kernel,
                _outputs(hood, s),
                targets,
                s.rate(number),
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
    hoods: Sequence[Neighbourhood], number: int, s: NtkSettings, federation: Federation
) -> list[Evolution | Diverged | None]:
    """Evolves several neighbourhoods at the same time, for `ntk_step`.

    Returns:
        For each of `hoods` its evolution, or the reason why the evolution failed. The entries are None
        where `ntk_step` evolves the neighbourhood itself: if there is only one, for the squared loss,
        which has a closed form, and for the compiled version, which evolves one client at a time.
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
            outputs[place, : sizes[place]] = _outputs(hood, s)
            targets[place, : sizes[place]] = s.targets(hood.labels, hood.outputs, number)
        rate = s.rate(number)
        batch = evolve_batch(kernels, outputs, targets, sizes, rate, s.taus, s.tolerance)
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


def ntk_step_work(
    settings: NtkSettings, network: Network, samples: np.ndarray, itemsize: int
) -> dict[str, Work]:
    """Counts kernel, evolution, update and choice of `ntk_step`, by phase.

    The counts follow from the shapes of the arrays. The number of products with the kernel in an
    evolution was fitted to runs on digits and Fashion-MNIST, and the other costs of an evolution to the
    compiled version.

    Args:
        settings: the settings of the method.
        network: the model.
        samples: number of samples of each neighbourhood, `[client]`.
        itemsize: bytes of a floating-point number.
    """
    outputs, taus, counts = network.classes, len(settings.taus), network.work
    square = samples * samples
    # The more time constants the evolution covers, the more steps it takes: lr * tau of the fastest
    # mode, whose rate is proportional to the number of features.
    span = max(settings.rate(0) * settings.taus[-1] * counts.features, 1.0)
    inner, outer = 8.7 * span**0.263, 3.8 * span**0.29
    products = 3 * 32 + 2 * outputs * outer
    evolution = Work(
        2 * square * products + inner * samples * outputs * 6 * 4 * 32,
        itemsize * (3 * square + inner * _PASSES_PER_INNER_STEP * samples * outputs),
        _CALLS_PER_EVOLUTION + 0 * samples,
    )
    if settings.loss == "squared":
        evolution = Work(10 * square * samples, 4 * itemsize * square, 60 + 0 * samples)
    gram, back = counts.kernel(samples), counts.update(samples, taus)
    return {
        "kernel": Work(gram.operations, itemsize * gram.numbers, 60 + 0 * samples),
        "evolve": evolution,
        "update": Work(
            back.operations,
            itemsize * (back.numbers + taus * 4 * network.layout.size),
            30 + 0 * samples,
        ),
        "select": Work(
            2 * taus * counts.products * samples * (settings.selection == "network"),
            itemsize * taus * 4 * samples * counts.widest,
            80 * taus + 0 * samples,
        ),
    }
