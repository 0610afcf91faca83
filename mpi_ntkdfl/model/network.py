"""What the rest of the package sees of a network: a function of one flat parameter vector.

Axes of the whole package: inputs `[sample, *shape]`, outputs `[sample, output]`, parameters `[P]`,
Jacobians `[sample, output, param]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from mpi_ntkdfl.model.jacobian import Jacobian
from mpi_ntkdfl.model.levels import Inputs, Levels
from mpi_ntkdfl.model.losses import Loss
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.model.training import Data, Trainer
from mpi_ntkdfl.model.work import NetworkWork


class FactoredForm(Protocol):
    """A small message from which whoever knows the parameters rebuilds the exact Jacobian."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The message's arrays by name, in their order: the shape of one sample's part of each."""
        ...

    def arrays(
        self, params: torch.Tensor, inputs: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The message's arrays `[sample, *shape]` at `params` `[P]`, and the outputs there."""
        ...

    def inputs(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The raw inputs `[sample, *shape]`, which the message holds as well."""
        ...

    def rebuild(
        self,
        params: torch.Tensor,
        arrays: Mapping[str, torch.Tensor],
        levels: Levels | None,
    ) -> Jacobian:
        """The Jacobian at `params` `[P]` of the samples that `arrays` tell of.

        Args:
            params: where the senders computed the arrays.
            arrays: of one sender, or of several, stacked.
            levels: on which all inputs lie, if they do.
        """
        ...


class Network(Protocol):
    """A network whose samples do not see each other."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters in the flat vector."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's input."""
        ...

    @property
    def classes(self) -> int:
        """C, the number of outputs."""
        ...

    @property
    def factored(self) -> FactoredForm | None:
        """Its small exact message for Jacobians; None for a network that has none."""
        ...

    @property
    def on_levels(self) -> bool:
        """Whether `functions` takes inputs on levels, which are faster (model/levels.py)."""
        ...

    @property
    def work(self) -> NetworkWork:
        """What its computations take, for planning."""
        ...

    def describe(self) -> str:
        """The network in a few words, for people."""
        ...

    def initial(self, generator: np.random.Generator) -> np.ndarray:
        """Starting parameters `[P]` float64, a function of what `generator` draws."""
        ...

    def outputs(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[sample, output]` with `params` `[P]` at `inputs` `[sample, *shape]`."""
        ...

    def functions(self, params: torch.Tensor, like: Inputs) -> Callable[[Inputs], torch.Tensor]:
        """What several parameter vectors make of the same inputs, for use on many of them.

        Args:
            params: `[network, P]`.
            like: inputs of the kind to come.

        Returns:
            From inputs `[sample, *shape]` to outputs `[network, sample, output]`.
        """
        ...

    def loss_gradient(
        self,
        params: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        loss: Loss,
        shares: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gradient `[P]` of the loss at `params` `[P]`.

        Args:
            params: where.
            inputs: of the samples, `[sample, *shape]`.
            labels: of the samples, integers `[sample]`.
            loss: which one.
            shares: what each sample counts, `[sample]`; None for 1 / N.
        """
        ...

    def jacobian(self, params: torch.Tensor, inputs: torch.Tensor) -> Jacobian:
        """The Jacobian at `params` `[P]` of `inputs` `[sample, *shape]`."""
        ...

    def trainer(self, data: Sequence[Data], batch: int, epochs: int) -> Trainer:
        """What takes the local steps of several clients; made once for a run.

        Args:
            data: inputs and labels of each client.
            batch: samples of a step.
            epochs: passes of a round through each client's samples.
        """
        ...

    def descend(
        self,
        params: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        lr: float,
        taus: Sequence[int],
        loss: Loss,
    ) -> torch.Tensor:
        """Full-batch gradient descent on the mean loss of all samples.

        Args:
            params: where to start, `[P]`.
            inputs: `[sample, *shape]`.
            labels: `[sample]` integers.
            lr: learning rate.
            taus: numbers of steps after which the parameters are wanted, ascending.
            loss: which one.

        Returns:
            The parameters after each of `taus`, `[tau, P]`.
        """
        ...

    def memory(self, samples: int) -> int:
        """Numbers it holds at most for the kernel and the update of N = `samples` samples.

        These are the samples themselves and what its Jacobian needs; kernels, evolutions and
        candidate parameters are not among them.
        """
        ...

    def training_memory(self, samples: int, batch: int, epochs: int) -> int:
        """Numbers that a `trainer` keeps from round to round for a client with `samples` samples."""
        ...
