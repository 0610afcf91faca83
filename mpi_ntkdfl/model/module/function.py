"""A module of torch as a function of one flat vector of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mpi_ntkdfl.model.module.unchanged import restored
from mpi_ntkdfl.model.params import Layout

Make = Callable[[], torch.nn.Module]
"""A function that makes a module, with starting weights from torch's own generator."""


def made(make: Make, seed: int) -> torch.nn.Module:
    """The module that `make` makes when torch's generator has the seed `seed`.

    The state of the generator is restored afterwards.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def _layout(module: torch.nn.Module, trained: Mapping[str, torch.nn.Parameter]) -> Layout:
    """The layout of a module's parameters `trained`, which are those that require a gradient."""
    names = {id(parameter): name for name, parameter in trained.items()}
    aliases, constants = {}, {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in names and name not in trained:
            aliases[name] = names[id(tensor)]
        elif name not in trained and isinstance(tensor, torch.Tensor):
            constants[name] = tensor.detach()
    return Layout({name: tuple(p.shape) for name, p in trained.items()}, aliases, constants)


def _registered(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Every place where a module holds one of `tensors`, with that tensor's name in `tensors`.

    A submodule that is registered under several names is taken once.
    """
    names = {id(tensor): name for name, tensor in tensors.items()}
    return {
        f"{path}.{name}" if path else name: names[id(tensor)]
        for path, part in module.named_modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    }


class FlatModule:
    """A module's outputs as a function of a flat parameter vector and inputs.

    Parameters that require no gradient, and buffers, are constants. They are copied in the type and on
    the device of the vector. What a pass writes into other attributes of the module is undone after it.

    Attributes:
        module: the module; its own parameters and buffers are never changed.
        layout: names and shapes of the parameters that require a gradient, and the rest of the module's
            state_dict.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        """Wraps `module`."""
        self.module = module
        parameters = dict(module.named_parameters())
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        self.layout = _layout(module, trained)
        self._trained = trained
        frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
        self._constants: dict[str, torch.Tensor] = {**frozen, **dict(module.named_buffers())}
        self._cast: dict[tuple[torch.dtype, torch.device], dict[str, torch.Tensor]] = {}
        # Torch replaces the tensors of a script only where the script is a part of another module.
        scripted = isinstance(module, torch.jit.ScriptModule)
        self._called = torch.nn.Sequential(module) if scripted else module
        self._names = _registered(self._called, {**trained, **self._constants})

    def flat(self) -> torch.Tensor:
        """The module's own parameters, `[P]` float64."""
        pieces = [p.detach().double().reshape(-1) for p in self._trained.values()]
        return torch.cat(pieces)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the module's first parameter that requires a gradient."""
        return next(iter(self._trained.values())).dtype

    def constants(self, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """Copies of buffers and frozen parameters in the type and on the device of `like`."""
        key = like.dtype, like.device
        if key not in self._cast:
            with torch.inference_mode(False):
                self._cast[key] = {
                    name: tensor.detach().to(
                        like if tensor.is_floating_point() else like.device, copy=True
                    )
                    for name, tensor in self._constants.items()
                }
        return self._cast[key]

    def with_tensors(
        self, tensors: Mapping[str, torch.Tensor], like: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor:
        """Outputs `[sample, output]` with parameters by name; `like` has the same type and device."""
        with restored(self.module):
            return self._pass(tensors, like, inputs)

    def twice(
        self, params: torch.Tensor, inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs of two passes, of which the second one sees what the first one left."""
        tensors = self.layout.unflatten(params)
        with restored(self.module):
            return self._pass(tensors, params, inputs), self._pass(tensors, params, inputs)

    def _pass(
        self, tensors: Mapping[str, torch.Tensor], like: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor:
        values = {**self.constants(like), **tensors}
        state = {name: values[own] for name, own in self._names.items()}
        # Ties are resolved here. Torch would replace a tensor twice in a module that is registered
        # under two names, and then not restore it.
        # A module may turn gradients on for its inputs, which must not reach the caller's tensor.
        own = inputs if inputs.requires_grad else inputs.detach()
        outputs: torch.Tensor = torch.func.functional_call(
            self._called, state, (own,), tie_weights=False
        )
        return outputs

    @contextmanager
    def holding(self, params: torch.Tensor) -> Iterator[dict[str, torch.nn.Parameter]]:
        """Within the context, the module itself holds `params` `[P]`, in their type.

        Its attributes are unchanged afterwards.

        Yields:
            The module's parameters by name.
        """
        values = {**self.constants(params), **self.layout.unflatten(params.clone())}
        tensors = {**self._trained, **self._constants}
        before = {name: tensor.data for name, tensor in tensors.items()}
        try:
            for name, tensor in tensors.items():
                tensor.data = values[name]
            with restored(self.module):
                yield self._trained
        finally:
            for name, tensor in tensors.items():
                tensor.data = before[name]

    def __call__(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[sample, output]` with `params` `[P]` at `inputs` `[sample, *shape]`."""
        return self.with_tensors(self.layout.unflatten(params), params, inputs)


def vectorised(function: Callable[..., Any], *arguments: Any, in_dims: Any = 0) -> Any:
    """`torch.func.vmap` of `function` at `arguments`.

    Torch warns of operations that it vectorises by a loop. The warning is suppressed, because the user
    cannot change that.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(function, in_dims=in_dims)(*arguments)


def chunks(samples: int, most: int) -> list[slice]:
    """Consecutive ranges of `samples` samples with at most `most` each."""
    return [slice(start, min(start + most, samples)) for start in range(0, samples, most)]
