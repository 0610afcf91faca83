"""Code of all methods with local training: settings, steps, and the cost of the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Method
from mpi_ntkdfl.algorithms.coded import CodedSettings
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.config.sections import MOST_SAMPLES, MethodSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.training import Sgd
from mpi_ntkdfl.topology.mixing import Averaging

# The settings of local training with their bounds. A method's settings class gives them its defaults.
Rate = Annotated[float, Field(gt=0, le=1e30)]
Factor = Annotated[float, Field(gt=0, le=1)]
Batch = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, le=1e6)]

_CALLS_PER_STEP = 25  # of local training, for all clients of a group together


class TrainingSettings(MethodSettings):
    """Settings of local training by SGD."""

    lr: Rate
    """Learning rate. Round k uses lr * lr_factor^k, k from 0."""
    lr_factor: Factor = 1.0
    """Factor of the learning rate per round."""
    batch: Batch
    """Samples per step. The last batch of a pass is kept even if it is small."""
    epochs: Epochs
    """Passes through the client's own samples per round, each in a new random order."""
    momentum: Momentum = 0.0
    """v <- momentum v + gradient + weight_decay w, then w <- w - lr v; a round starts with v = 0."""
    weight_decay: Decay = 0.0
    """Factor of the weights in the gradient."""
    calibration: float = Field(default=0.0, ge=0, le=100)
    """In the loss of local training, calibration * log(share of the class among the client's own
    samples) is added to the outputs. 0 adds nothing, 1 is logit adjustment for label skew.
    """

    def sgd(self, number: int) -> Sgd:
        """The descent of round `number`; the first is 0."""
        return Sgd(self.lr * self.lr_factor**number, self.momentum, self.weight_decay)


class SendingSettings(TrainingSettings, CodedSettings):
    """Settings of local training by clients that send their weights."""


class AveragingSettings(SendingSettings):
    """Settings of local training and an average over the neighbourhood."""

    averaging: Averaging = "plain"
    """Weights of the average over the neighbourhood: equal (`plain`), or in proportion to the
    clients' samples (`samples`), or Metropolis weights (`metropolis`), which keep the mean of all
    clients on graphs of unequal degrees.
    """


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
        self.training = LocalTraining(
            federation, settings.batch, settings.epochs, settings.calibration
        )

    def train(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        """The weights `[owned, param]` after the local steps of round `number`.

        Args:
            weights: the weights before these steps, `[owned, param]`.
            number: number of the round.
        """
        return self.training.descend(weights, number, self.settings.sgd(number))

    @classmethod
    def training_bytes(
        cls, settings: SettingsT, network: Network, dtype: torch.dtype
    ) -> Callable[[int], int] | None:
        """A function from a client's number of samples to the bytes that local training keeps of it."""
        if not cls.plain_sgd:
            return None

        def nbytes(samples: int) -> int:
            numbers = network.training_memory(samples, settings.batch, settings.epochs)
            return numbers * dtype.itemsize

        return nbytes

    @classmethod
    def work(cls, settings: SettingsT, load: Load) -> dict[str, Work]:
        """Counts the local steps."""
        s, gradients = settings, cls.gradients_per_step
        took = load.network.work.training(
            load.own, s.batch, s.epochs, gradients, by_entry=not cls.plain_sgd
        )
        calls = gradients * took.steps * _CALLS_PER_STEP + load.nothing
        return {"train": Work(took.operations, load.itemsize * took.numbers, calls)}


def takes_plain_steps(method: type) -> bool:
    """Whether the method's local steps are those of `LocalTraining.descend`."""
    return issubclass(method, TrainingMethod) and method.plain_sgd
