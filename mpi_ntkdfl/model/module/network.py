"""Any module of torch as a network. `Network` describes the methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.model.byte_products import Choice
from mpi_ntkdfl.model.levels import Inputs
from mpi_ntkdfl.model.losses import Loss, loss_gradient, shifted
from mpi_ntkdfl.model.module.checks import examined
from mpi_ntkdfl.model.module.fast import fast_numbers
from mpi_ntkdfl.model.module.function import FlatModule, Make, chunks, made
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.training import ModuleTrainer
from mpi_ntkdfl.model.module.work import ModuleWork
from mpi_ntkdfl.model.params import Layout, aligned, outside
from mpi_ntkdfl.model.training import Data
from mpi_ntkdfl.runtime.device import on_gpu

ROOM = 2**28
"""How many numbers of gradients a kernel holds: 1 GiB in float32. It is constant, because the rounding
of sums over ranges of samples depends on the lengths of the ranges."""

_SHARE = 3 / 8
"""The share of a limit on memory that is for gradients. Passes take up to as much beside them, and the
rest is for evolutions."""

_MOST_AT_ONCE, _EVALUATED_AT_ONCE = 512, 64
_PLACES_CUDA = 64
"""The most samples of a pass, and of a pass without gradients on a CPU, because few samples stay in the
caches; the most clients that train together on a GPU."""


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight, whose further axes are columns."""
    return shape[0], math.prod(shape[1:])


class ModuleNetwork:
    """A network around a module in which the outputs of a sample depend only on that sample.

    It is built from a function that makes the module. Starting weights are drawn by making the module
    anew, and every rank makes its own module.

    Attributes:
        factored: None; clients send dense Jacobians or samples.
        on_levels: false; inputs are plain tensors.
        shape: shape of one sample.
        classes: C.
    """

    factored = None
    on_levels = False

    def __init__(
        self,
        make: Make,
        shape: tuple[int, ...],
        classes: int,
        label: str,
        examples: torch.Tensor | None = None,
        room: int = ROOM,
    ) -> None:
        """Makes the module and tries it out.

        Args:
            make: makes the module; its weights must depend only on the state of torch's generator.
            shape: shape of one sample.
            classes: C, the number of outputs of the module.
            label: name of the network.
            examples: samples for the trials, `[sample, *shape]`; None for random ones.
            room: how many numbers it may hold at once.

        Raises:
            InputError: if the module cannot be a network; the message says why and what to do.
        """
        self._make, self._label = make, label
        self.shape, self.classes = tuple(shape), classes
        self._facts = examined(make, self.shape, classes, examples)
        self._limits = self._limits_for(room)
        self._function = FlatModule(made(make, 0))

    def _limits_for(self, room: int) -> Limits:
        at_once = max(min(room // self._facts.passing, _MOST_AT_ONCE), 1)
        return Limits(room, at_once, self._facts.vectorised)

    def within(self, numbers: int) -> ModuleNetwork:
        """The same network, which holds about `numbers` numbers for a kernel."""
        other = copy(self)
        other._limits = self._limits_for(max(int(_SHARE * numbers), 1))
        return other

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without the module, whose class other ranks may not be able to unpickle."""
        return {name: value for name, value in vars(self).items() if name != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Sets the attributes and makes the module anew."""
        vars(self).update(state)
        self._function = FlatModule(made(self._make, 0))

    @property
    def layout(self) -> Layout:
        """The module's parameters that require a gradient, by the module's own names."""
        return self._function.layout

    @property
    def work(self) -> ModuleWork:
        """The amount of work, computed from a forward pass."""
        facts, layout, plan = self._facts, self.layout, self._facts.plan
        sizes = dict(zip(layout.shapes, layout.sizes, strict=True))
        generic = sizes if plan is None else plan.rest
        return ModuleWork(
            features=math.prod(self.shape),
            layers=len(layout.shapes),
            products=facts.products,
            activations=facts.activations,
            params=layout.size,
            classes=self.classes,
            room=self._limits.room,
            generic=sum(sizes[name] for name in generic),
            multiplied=sum(plan.multiplied.values()) if plan else 0,
            linear=tuple(_matrix(layout.shapes[name]) for name in plan.linear) if plan else (),
        )

    def describe(self) -> str:
        """The name of the network, and how its gradients are computed."""
        how = "" if self._facts.vectorised else ", gradients one sample at a time"
        return f"{self._label} (module of torch{how})"

    @property
    def module(self) -> torch.nn.Module:
        """The module, with the weights that it has when it is made with the seed 0."""
        return self._function.module

    @property
    def choices(self) -> dict[str, str]:
        """How kernels are computed: by the fast form, or by the generic one and why."""
        return {"kernel": self._facts.kernel}

    def own_parameters(self) -> torch.Tensor:
        """The values of the parameters when the module was made, `[P]` float64."""
        return self._function.flat()

    def initial(self, generator: np.random.Generator) -> np.ndarray:
        """The starting weights of a module that is made anew with a seed that `generator` draws."""
        module = made(self._make, int(generator.integers(2**63)))
        values: np.ndarray = FlatModule(module).flat().cpu().numpy()
        return values

    def outputs(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[sample, output]` with `params` `[P]` at `inputs` `[sample, *shape]`."""
        return self._function(aligned(params), inputs)

    def functions(self, params: torch.Tensor, like: Inputs) -> Callable[[Inputs], torch.Tensor]:
        """A function that computes the outputs for one parameter vector after another."""
        rows, at_once = [aligned(row) for row in params], self._limits.at_once
        if not on_gpu(params.device):
            at_once = min(at_once, _EVALUATED_AT_ONCE)

        def outputs(inputs: Inputs) -> torch.Tensor:
            assert isinstance(inputs, torch.Tensor)
            parts = chunks(len(inputs), at_once)
            with torch.no_grad():
                return torch.stack(
                    [
                        torch.cat([self._evaluated(row, inputs[some]) for some in parts])
                        for row in rows
                    ]
                )

        return outputs

    def _evaluated(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs without gradients. In inference mode a module could not compute gradients itself."""
        if not self._facts.differentiates:
            return self._function(params, inputs)
        with torch.inference_mode(False), torch.no_grad():
            return self._function(outside(params), outside(inputs)).detach()

    def loss_gradient(
        self,
        params: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        loss: Loss,
        shares: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gradient `[P]` of the loss, computed for one range of samples after another."""
        return self._gradient(params, inputs, labels, loss, shares, None)

    def _gradient(
        self,
        params: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        loss: Loss,
        shares: torch.Tensor | None,
        shift: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same, with `shift` `[output]` added to the outputs if it is not None."""
        if shares is None:
            shares = params.new_full((len(labels),), 1 / len(labels))
        total, point = torch.zeros_like(params), aligned(params)
        for some in chunks(len(labels), self._limits.at_once):
            part = inputs[some], labels[some]
            network = shifted(self._function, shift)
            total.add_(loss_gradient(network, point, *part, loss, shares[some]))
        return total

    def jacobian(self, params: torch.Tensor, inputs: torch.Tensor) -> ModuleJacobian:
        """The Jacobian, from gradients of single samples."""
        return ModuleJacobian(
            self._function, params, inputs, self.classes, self._limits, self._facts.plan
        )

    def trainer(
        self,
        data: Sequence[Data],
        batch: int,
        epochs: int,
        shifts: Sequence[torch.Tensor] = (),
        compiled: bool = False,
    ) -> ModuleTrainer:
        """Training by autograd; there is no compiled version."""
        together = on_gpu(data[0][0].device) and self._facts.vectorised
        places = _PLACES_CUDA if together else 1
        return ModuleTrainer(self._function, data, batch, epochs, places, shifts)

    def compiled_training(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """None."""
        return Choice(False, "modules take their steps in tensors")

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
        """Full-batch gradient descent by autograd: `[tau, P]`."""
        wanted = []
        for step in range(1, taus[-1] + 1):
            gradient = self._gradient(params, inputs, labels, loss, None, shift)
            params = params - lr * gradient
            if step in taus:
                wanted.append(params)
        return torch.stack(wanted)

    def memory(self, samples: int) -> int:
        """The samples twice, factors, the gradients that are multiplied, and what is kept from passes."""
        plan, room = self._facts.plan, self._limits.room
        passing = min(samples, self._limits.at_once) * self._facts.passing
        generic = min(max(room, 2 * self.layout.size), 2 * samples * self.layout.size) + passing
        fast = fast_numbers(plan, samples, self.classes, room) if plan else generic
        kernel = max(fast, generic) if plan is None or plan.rest else fast
        return samples * (2 * math.prod(self.shape) + self.work.factors) + max(kernel, passing)

    def training_memory(self, samples: int, batch: int, epochs: int) -> int:
        """Nothing is kept from round to round."""
        return 0
