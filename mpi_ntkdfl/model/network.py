"""The interface of networks to the rest of the package: functions of one flat parameter vector.

The whole package uses these axes: inputs `[sample, *shape]`, outputs `[sample, output]`, parameters
`[P]`, Jacobians `[sample, output, param]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from mpi_ntkdfl.model.byte_products import Choice
from mpi_ntkdfl.model.jacobian import Jacobian
from mpi_ntkdfl.model.levels import Inputs, Levels
from mpi_ntkdfl.model.losses import Loss
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.model.training import Data, Trainer
from mpi_ntkdfl.model.work import NetworkWork


class FactoredForm(Protocol):
    """A small message from which a receiver that knows the parameters rebuilds the exact Jacobian."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of one sample's part of each array, by the array's name, in their order."""

    def arrays(
        self, params: torch.Tensor, inputs: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The message's arrays `[sample, *shape]` at `params` `[P]`, and the outputs there."""

    def inputs(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The raw inputs `[sample, *shape]`, which the message contains as well."""

    def rebuild(
        self, params: torch.Tensor, arrays: Mapping[str, torch.Tensor], levels: Levels | None
    ) -> Jacobian:
        """The Jacobian at `params` `[P]` of the samples from which `arrays` were computed.

        Args:
            params: the parameters with which the senders computed the arrays.
            arrays: the arrays of one sender, or the stacked arrays of several senders.
            levels: the levels on which all inputs lie; None if they do not.
        """


class Network(Protocol):
    """A network in which the outputs of a sample depend only on that sample."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters in the flat vector."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's input."""

    @property
    def classes(self) -> int:
        """C, the number of outputs."""

    @property
    def factored(self) -> FactoredForm | None:
        """The small exact message for Jacobians; None for a network that has none."""

    @property
    def on_levels(self) -> bool:
        """Whether `functions` accepts inputs on levels, which are faster (model/levels.py)."""

    def within(self, numbers: int) -> Network:
        """The same network, which holds about `numbers` numbers at most for the kernel of a client.

        Its outputs are the same. The last bits of its kernels may depend on `numbers`.
        """

    @property
    def work(self) -> NetworkWork:
        """The amount of work of its computations, for planning."""

    def describe(self) -> str:
        """A short description of the network, for people."""

    @property
    def choices(self) -> Mapping[str, str]:
        """Ways of computing that the network has chosen, by name, for the log and the record."""

    def initial(self, generator: np.random.Generator) -> np.ndarray:
        """Starting parameters `[P]` float64; they depend only on the numbers that `generator` draws."""

    def outputs(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[sample, output]` with `params` `[P]` at `inputs` `[sample, *shape]`."""

    def functions(self, params: torch.Tensor, like: Inputs) -> Callable[[Inputs], torch.Tensor]:
        """A function that computes the outputs for several parameter vectors on the same inputs.

        The function can be called for many batches of inputs.

        Args:
            params: `[network, P]`.
            like: inputs of the same kind as those with which the function will be called.

        Returns:
            A function from inputs `[sample, *shape]` to outputs `[network, sample, output]`.
        """

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
            params: the parameters at which the gradient is taken.
            inputs: inputs of the samples, `[sample, *shape]`.
            labels: labels of the samples, integers `[sample]`.
            loss: the name of the loss.
            shares: weight of each sample's loss, `[sample]`; None for 1 / N.
        """

    def jacobian(self, params: torch.Tensor, inputs: torch.Tensor) -> Jacobian:
        """The Jacobian at `params` `[P]` of `inputs` `[sample, *shape]`."""

    def trainer(
        self,
        data: Sequence[Data],
        batch: int,
        epochs: int,
        shifts: Sequence[torch.Tensor] = (),
        compiled: bool = False,
    ) -> Trainer:
        """An object that takes the local steps of several clients; it is made once per run.

        Args:
            data: inputs and labels of each client.
            batch: number of samples per step.
            epochs: number of passes per round through each client's samples.
            shifts: what is added to each client's outputs in its loss, `[output]`; empty for nothing.
            compiled: whether to take the compiled version, which must then be there.
        """

    def compiled_training(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """Whether its `trainer` has a compiled version that runs here, and which, or why not."""

    def descend(
        self,
        params: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        lr: float,
        taus: Sequence[int],
        loss: Loss,
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Full-batch gradient descent on the mean loss of all samples.

        Args:
            params: the starting point, `[P]`.
            inputs: `[sample, *shape]`.
            labels: `[sample]` integers.
            lr: learning rate.
            taus: numbers of steps after which the parameters are returned, ascending.
            loss: the name of the loss.
            shift: what is added to the outputs in the loss, `[output]`; None for nothing.

        Returns:
            The parameters after each of `taus`, `[tau, P]`.
        """

    def memory(self, samples: int) -> int:
        """The most numbers that it holds for the kernel and the update of N = `samples` samples.

        They include the samples themselves and everything that the Jacobian needs, but no kernels,
        evolutions and candidate parameters.
        """

    def training_memory(self, samples: int, batch: int, epochs: int) -> int:
        """How many numbers a `trainer` keeps from round to round for a client with `samples` samples."""
