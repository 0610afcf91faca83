"""What methods with local training share: their settings, their steps, and what these cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Method
from mpi_ntkdfl.algorithms.local_training import (
    LocalTraining,
    Sgd,
    dual_pays,
    gram_bytes,
    padded_samples,
)
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.model.network import Network

_CALLS_PER_STEP = 25  # of local training, for all clients of a group together


class TrainingSettings(MethodSettings):
    """Settings of local training by SGD.

    Round k uses `lr * lr_factor ** k`. `epochs` are passes through a client's own samples in batches
    of `batch`. Velocities of `momentum` start at zero in every round.
    """

    lr: float = Field(gt=0)
    lr_factor: float = Field(default=1.0, gt=0)
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)

    def sgd(self, number: int) -> Sgd:
        """The descent of round `number`; the first is 0."""
        return Sgd(self.lr * self.lr_factor**number, self.momentum, self.weight_decay)


SettingsT = TypeVar("SettingsT", bound=TrainingSettings)


class TrainingMethod(Method[SettingsT]):
    """A method whose clients take gradient steps on their own samples.

    Attributes:
        plain_sgd: whether `train` takes plain steps of SGD, as `LocalTraining.descend` does.
        gradients_per_step: how often a step computes a gradient.
        training: the local steps of the clients of this rank.
    """

    plain_sgd: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Prepares local training."""
        super().__init__(settings, federation)
        self.training = LocalTraining(federation, settings.batch, settings.epochs)

    def train(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        """The weights `[owned, param]` after the local steps of round `number`.

        Args:
            weights: before them, `[owned, param]`.
            number: of the round.
        """
        return self.training.descend(weights, number, self.settings.sgd(number))

    @classmethod
    def training_bytes(
        cls, settings: SettingsT, network: Network, dtype: torch.dtype
    ) -> Callable[[int], int] | None:
        """Bytes that local training keeps of a client, given its samples; see `Needs`."""
        if not cls.plain_sgd:
            return None
        return partial(gram_bytes, network, dtype, settings.batch, settings.epochs)

    @classmethod
    def work(cls, settings: SettingsT, load: Load) -> dict[str, Work]:
        """Counts the local steps."""
        widths, epochs = load.network.widths, settings.epochs
        features, units = widths[0], widths[1]
        weights = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
        rows = np.array([padded_samples(int(n), settings.batch) for n in load.own], np.float64)
        dual = np.array([cls.plain_sgd and dual_pays(int(n), features, epochs) for n in rows])
        first = np.where(
            dual, 2 * features * rows + epochs * rows * rows, 3 * epochs * rows * features
        )
        above = 6 * epochs * rows * (weights - features * units)
        steps = epochs * rows / settings.batch
        # A step's update of the first layer touches its coefficients (dual form) or the weights.
        touched = np.where(dual, rows * units, weights)
        return {
            "train": Work(
                cls.gradients_per_step * (2 * units * first + above),
                3 * load.itemsize * steps * touched,
                cls.gradients_per_step * steps * _CALLS_PER_STEP,
            )
        }
