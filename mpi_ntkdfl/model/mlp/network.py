"""The multilayer perceptron as a network. `Network` describes the methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from mpi_ntkdfl.model.byte_products import Choice
from mpi_ntkdfl.model.kinds.base import Scheme
from mpi_ntkdfl.model.losses import Loss, loss_gradient
from mpi_ntkdfl.model.mlp.compiled_training import find
from mpi_ntkdfl.model.mlp.descent import descend
from mpi_ntkdfl.model.mlp.jacobian import FactoredJacobian, LayerInputsForm
from mpi_ntkdfl.model.mlp.stack import Stack
from mpi_ntkdfl.model.mlp.training import StackTrainer, gram_numbers
from mpi_ntkdfl.model.mlp.work import StackWork
from mpi_ntkdfl.model.training import Data
from mpi_ntkdfl.runtime.device import on_gpu


@dataclass(frozen=True)
class MLP(Stack):
    """A multilayer perceptron with ReLU between its layers; `widths` as in `Stack`.

    Attributes:
        scheme: how starting weights are drawn.
    """

    scheme: Scheme = "kaiming"

    @property
    def shape(self) -> tuple[int, ...]:
        """One axis: the features."""
        return self.widths[:1]

    @property
    def classes(self) -> int:
        """The last width."""
        return self.widths[-1]

    @property
    def factored(self) -> LayerInputsForm:
        """The layers' inputs."""
        return LayerInputsForm(self)

    @property
    def on_levels(self) -> bool:
        """Yes: its first layer is a product with the inputs."""
        return True

    def within(self, numbers: int) -> MLP:
        """Itself: it keeps the arrays of `memory` in any case."""
        return self

    @property
    def work(self) -> StackWork:
        """The amount of work, computed from the widths."""
        return StackWork(self.widths)

    def describe(self) -> str:
        """The widths."""
        return " - ".join(map(str, self.widths))

    @property
    def choices(self) -> dict[str, str]:
        """None: the widths decide everything."""
        return {}

    def initial(self, generator: np.random.Generator) -> np.ndarray:
        """Starting weights of the network's `scheme`, `[P]` float64; see `Scheme`."""
        if self.scheme == "torch":
            pieces = []
            for fan_in, fan_out in pairwise(self.widths):
                reach = 1 / math.sqrt(fan_in)
                pieces.append(generator.uniform(-reach, reach, fan_out * (fan_in + 1)))
            return np.concatenate(pieces)
        pieces = [
            generator.standard_normal(size) * math.sqrt(2 / shape[1])
            if len(shape) == 2
            else np.zeros(size)
            for size, shape in zip(self.layout.sizes, self.layout.shapes.values(), strict=True)
        ]
        return np.concatenate(pieces)

    def outputs(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[sample, output]` with `params` `[P]` at `inputs` `[sample, feature]`."""
        return self.functions(params[None], inputs)(inputs)[0]

    def loss_gradient(
        self,
        params: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        loss: Loss,
        shares: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gradient `[P]` of the loss, all samples in one pass."""
        return loss_gradient(self.outputs, params, inputs, labels, loss, shares)

    def jacobian(self, params: torch.Tensor, inputs: torch.Tensor) -> FactoredJacobian:
        """The Jacobian by layers."""
        return FactoredJacobian(self, params, self.activations(params, inputs).inputs)

    def trainer(
        self,
        data: Sequence[Data],
        batch: int,
        epochs: int,
        shifts: Sequence[torch.Tensor] = (),
        compiled: bool = False,
    ) -> StackTrainer:
        """Training by batched products, or in C."""
        return StackTrainer(self, data, batch, epochs, shifts, compiled)

    def compiled_training(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """The compiled version is for CPUs and float32."""
        if on_gpu(device) or dtype != torch.float32:
            return Choice(False, "the compiled version is for float32 on CPUs")
        build = find()
        if isinstance(build, str):
            return Choice(False, build)
        return Choice(True, f"built for {build.level}")

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
        """Full-batch gradient descent, `[tau, P]`, with the Gram matrix of the inputs if it is faster."""
        return descend(self, params, inputs, labels, lr, taus, loss, shift)

    def memory(self, samples: int) -> int:
        """Two copies of the stacked layer inputs and of the signals of each layer."""
        into, deep = sum(self.widths[:-1]), sum(self.widths[1:-2])
        return 4 * samples * into + 2 * samples * self.classes * deep

    def training_memory(self, samples: int, batch: int, epochs: int) -> int:
        """Numbers of the Gram matrix that the dual form keeps."""
        return gram_numbers(self.widths[0], samples, batch, epochs)
