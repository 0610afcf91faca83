"""Gradients of several combinations of outputs in one tensor, and nodes that they pass.

`backward` explains them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mpi_ntkdfl.model.module.graph import Node, Shape


@dataclass(frozen=True)
class Folded:
    """The gradients of k combinations of outputs with respect to one tensor.

    Attributes:
        tensor: as that tensor, but with k times as many entries on one axis: by block, combination, and
            entry of the block.
        axis: which one.
        own: whether nothing else needs the memory of `tensor`.
    """

    tensor: torch.Tensor
    axis: int = 0
    own: bool = True


Gradients = Folded | list[torch.Tensor]
"""Gradients of k combinations, folded or one after another."""

Known = dict[int, torch.Tensor]
"""What a rule also found: gradients of single samples `[sample, k * entry]` for parameters of its node.
The key is the number of the input that the parameter is."""


@dataclass(frozen=True)
class Step:
    """A node on the way back.

    Attributes:
        node: the node.
        shape: shape of its first output.
        sources: for each of its inputs, the number of the node it comes from, which output of that node
            it is, and its shape; None for inputs whose gradients nothing needs.
        samples: B.
        count: k.
        known: a rule may put here what it also found.
    """

    node: Node
    shape: Shape
    sources: tuple[tuple[int, int, Shape] | None, ...]
    samples: int
    count: int
    known: Known = field(default_factory=dict)

    def blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of one gradient as `[B, 1, S / B, ...]`, for products with `folded_blocks`."""
        return torch.unflatten(tensor, 0, (self.samples, 1, -1))

    def folded_blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that is folded on its first axis, as `[B, k, S / B, ...]`."""
        return torch.unflatten(tensor, 0, (self.samples, self.count, -1))

    def repeated(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor whose blocks are the same for all k gradients, folded."""
        own = self.blocks(tensor)
        return own.expand(-1, self.count, *own.shape[2:]).flatten(0, 2).contiguous()

    def folded_shape(self, shape: Shape) -> Shape:
        """The shape of folded gradients."""
        return (shape[0] * self.count, *shape[1:])

    def only(self, edge: int, tensor: torch.Tensor) -> list[Folded | None] | None:
        """A new gradient for the input `edge`; None if another one is needed as well."""
        needed = [number for number, source in enumerate(self.sources) if source]
        if needed != [edge]:
            return None
        return [Folded(tensor) if number == edge else None for number in range(len(self.sources))]


def unfolded(gradients: Gradients, samples: int, count: int) -> list[torch.Tensor]:
    """The k gradients one after another."""
    if not isinstance(gradients, Folded):
        return gradients
    axis = gradients.axis
    parts = torch.unflatten(gradients.tensor, axis, (samples, count, -1)).unbind(axis + 1)
    return [part.flatten(axis, axis + 1) for part in parts]


def folded(parts: list[torch.Tensor], samples: int) -> Gradients:
    """The k gradients on the first axis of one tensor, if that axis can be cut into B blocks."""
    shape = parts[0].shape
    if not shape or not shape[0] or shape[0] % samples:
        return parts
    blocks = [torch.unflatten(part, 0, (samples, -1)) for part in parts]
    return Folded(torch.stack(blocks, 1).flatten(0, 2))


def as_tuple(
    found: torch.Tensor | tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor | None, ...]:
    """What a node returns for its inputs; nodes with one input return a tensor."""
    return found if isinstance(found, tuple) else (found,)
