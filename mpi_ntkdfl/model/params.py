"""Parameters as one flat vector `[P]`, and its views under the names of a torch state_dict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch

from mpi_ntkdfl.runtime.errors import InputError

# Bytes of a cache line. Matrix products may round differently if an operand does not start on a cache
# line. The length of a row of a parameter matrix is no multiple of this, so rows are copied before use.
ALIGNMENT = 64


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Returns `tensor`, or a copy of it whose memory starts on an `ALIGNMENT`-byte boundary.

    Every operand of a product must go through this function, if the bits of the product must not depend
    on the address of a client's row, and so on the number of clients that share the rank.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def outside(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy of it if it was made in inference mode, such as all tensors of a round.

    Autograd does not accept tensors that were made in inference mode. Call this function outside
    inference mode.
    """
    return tensor.clone() if tensor.is_inference() else tensor


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in a flat vector, in their order; and the rest of a state_dict.

    Attributes:
        shapes: shape of each tensor by name; the vector concatenates them in this order.
        aliases: further names of these tensors in a state_dict, as of tied weights.
        constants: all other tensors of a state_dict by name, such as buffers and frozen parameters.
    """

    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor in the vector, and the end of the last one."""
        return (0, *accumulate(self.sizes))

    @property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return self.offsets[-1]

    def unflatten(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views `[..., *shape]` into `flat` `[..., P]`, by name.

        Raises:
            ValueError: if the length of the last axis of `flat` is not P.
        """
        if flat.shape[-1:] != (self.size,):
            raise ValueError(
                f"expected vectors of {self.size} parameters, got shape {tuple(flat.shape)}"
            )
        pieces = torch.split(flat, list(self.sizes), dim=-1)
        return {
            name: piece.view(flat.shape[:-1] + shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def state_dict(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """A complete state_dict, as a module's `load_state_dict` takes it.

        Args:
            flat: the parameters, `[P]`.
        """
        state = {name: tensor.clone() for name, tensor in self.unflatten(flat).items()}
        further = {name: state[own].clone() for name, own in self.aliases.items()}
        return {**state, **further, **{n: each.clone() for n, each in self.constants.items()}}

    def flatten(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Concatenates a state_dict into a vector `[P]`.

        Aliases and constants may be missing, but they must not have other values than they have here.

        Raises:
            InputError: for missing or unexpected names, a wrong shape, or values that are not finite, or
                aliases and constants with other values.
        """
        for name in [name for name in state if name in self.aliases or name in self.constants]:
            own = self.constants.get(name)
            if own is None:
                own = state.get(self.aliases[name], state[name])
            if not torch.equal(state[name].to(own.dtype), own):
                raise InputError(
                    f"weights: {name} must have the values that the network has when it is made "
                    "(it is not trained, or is another name of a trained tensor), got other values; "
                    "leave it out of the file"
                )
        rest = {*self.aliases, *self.constants}
        state = {name: tensor for name, tensor in state.items() if name not in rest}
        if sorted(map(str, state)) != sorted(self.shapes):
            raise InputError(
                f"weights: expected the tensors {', '.join(self.shapes)}; "
                f"got {', '.join(map(str, state))}"
            )
        for name, shape in self.shapes.items():
            if tuple(state[name].shape) != shape:
                raise InputError(
                    f"weights: {name} must have shape {list(shape)} for this model and data set, "
                    f"got {list(state[name].shape)}"
                )
            if not bool(torch.isfinite(state[name]).all()):
                raise InputError(f"weights: {name} holds values that are not finite")
        return torch.cat([state[name].reshape(-1) for name in self.shapes])
