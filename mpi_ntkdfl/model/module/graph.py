"""The graph that autograd records of a forward pass, read as a list of uses of parameters.

Torch differentiates along this graph, so that every use of a parameter is in it: of shared and tied
tensors, and of tensors that are handed to a function. Attributes of nodes are those of torch's derivative
formulas (`_saved_NAME`). What is not recognised here is left to the generic form of the Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

Node = Any
"""A node of autograd's graph; torch does not declare the attributes that are read here."""

Shape = tuple[int, ...]

_VIEWS = frozenset(
    f"{name}Backward{number}"
    for name in (
        "T",
        "Transpose",
        "Permute",
        "View",
        "UnsafeView",
        "ReshapeAlias",
        "Unsqueeze",
        "Squeeze",
    )
    for number in range(3)
)
"""Operations that only rearrange all entries of a tensor."""

_STAYING = _VIEWS | frozenset(
    f"{name}Backward{number}"
    for name in (
        *("Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Abs", "Pow", "Exp", "Log", "Sqrt", "Rsqrt"),
        *(
            "Reciprocal",
            "Sin",
            "Cos",
            "Erf",
            "Clamp",
            "ClampMin",
            "ClampMax",
            "Where",
            "MaskedFill",
        ),
        *("Relu", "LeakyRelu", "PreluKernel", "Elu", "Gelu", "Silu", "Mish", "Softplus", "Tanh"),
        *("Sigmoid", "LogSigmoid", "Hardswish", "Hardsigmoid", "Hardtanh", "Threshold"),
        *("Expand", "Clone", "Alias", "ToCopy", "Cat", "Stack", "Unbind", "Split", "UnsafeSplit"),
        *("SplitWithSizes", "Select", "Slice", "ConstantPadNd", "Repeat"),
        *("Sum", "Mean", "Var", "VarMean", "Std", "Softmax", "LogSoftmax", "Convolution"),
        *("NativeLayerNorm", "NativeGroupNorm", "NativeBatchNorm", "FusedRmsNorm"),
        *("MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D"),
    )
    for number in range(4)
)
"""Operations whose entries belong to the same samples in every pass, whatever the values are."""

_FIRST_AXIS = ("BmmBackward0", "ScaledDotProductFlashAttentionForCpuBackward0")
"""Operations that treat the entries of the first axis by themselves."""


@dataclass(frozen=True)
class Step:
    """One node of a graph.

    Attributes:
        operation: name of the operation.
        sources: the nodes that its inputs come from; -1 for an input without a gradient.
        shapes: shapes of its outputs.
    """

    operation: str
    sources: tuple[int, ...]
    shapes: tuple[Shape, ...]

    def same(self, other: Step, samples: int, others: int) -> bool:
        """Whether `other`, of `others` samples, is the same node as this one of `samples` samples."""
        if (self.operation, self.sources) != (other.operation, other.sources):
            return False
        if len(self.shapes) != len(other.shapes):
            return False
        return all(
            len(a) == len(b) and _scaled(a, b, samples, others)
            for a, b in zip(self.shapes, other.shapes, strict=True)
        )


def _scaled(shape: Shape, other: Shape, samples: int, others: int) -> bool:
    """Whether the shapes are equal, or differ in one axis, in proportion to the samples."""
    different = [(a, b) for a, b in zip(shape, other, strict=True) if a != b]
    return not different or (
        len(different) == 1 and different[0][0] * others == different[0][1] * samples
    )


@dataclass(frozen=True)
class Consumer:
    """A node that reads a parameter.

    Attributes:
        place: the node's number in the graph.
        edge: which of its inputs the parameter is.
        views: the rearrangements through which the parameter gets there, with their shapes.
    """

    place: int
    edge: int
    views: tuple[tuple[str, Shape], ...]


class Graph:
    """The nodes between outputs and parameters, in an order that depends on the graph only.

    Attributes:
        nodes: all nodes; the first one made the outputs.
        steps: what they do.
    """

    def __init__(self, outputs: torch.Tensor) -> None:
        """Walks the graph backwards from `outputs`; it is empty if they have no gradient."""
        self.nodes: list[Node] = [] if outputs.grad_fn is None else [outputs.grad_fn]
        places: dict[Node, int] = dict.fromkeys(self.nodes, 0)
        sources: list[tuple[int, ...]] = []
        for node in self.nodes:  # which grows
            for source, _ in node.next_functions:
                if source is not None and source not in places:
                    places[source] = len(self.nodes)
                    self.nodes.append(source)
            sources.append(tuple(places.get(source, -1) for source, _ in node.next_functions))
        self.steps = tuple(
            Step(node.name(), own, _shapes(node))
            for node, own in zip(self.nodes, sources, strict=True)
        )
        self._places = places

    def shape(self, place: int) -> Shape:
        """Shape of the output that node `place` made; () if it made several or if it is not known."""
        shapes = self.steps[place].shapes
        return shapes[0] if shapes else ()

    def numel(self, place: int) -> int:
        """Number of entries of the output that node `place` made."""
        return math.prod(self.shape(place))

    def edge(self, place: int) -> GradientEdge:
        """Where the gradient with respect to the output of node `place` arrives."""
        return GradientEdge(self.nodes[place], 0)

    def above(self, places: Iterable[int]) -> set[int]:
        """The nodes `places`, and all nodes between them and the outputs."""
        readers = self.readers
        found = set(places)
        waiting = list(found)
        while waiting:
            new = {reader for reader, _ in readers.get(waiting.pop(), ())} - found
            found |= new
            waiting += new
        return found

    def staying(self, places: Iterable[int], samples: int) -> bool:
        """Whether no operation above `places` can move entries from sample to sample by their values.

        Args:
            places: numbers of nodes.
            samples: number of samples of the pass.
        """
        above = self.above(places)
        return all(
            self._stays(place, edge, samples)
            for place in above
            for edge, source in enumerate(self.steps[place].sources)
            if source in above
        )

    def _stays(self, place: int, edge: int, samples: int) -> bool:
        operation, shape = self.steps[place].operation, self.shape(place)
        if operation in ("MmBackward0", "AddmmBackward0"):
            return edge < len(self.steps[place].sources) - 1  # the second factor's rows are mixed
        if operation in _FIRST_AXIS:
            return bool(shape) and shape[0] % samples == 0
        return operation in _STAYING

    @cached_property
    def readers(self) -> dict[int, list[tuple[int, int]]]:
        """For each node, the nodes that read its output, and by which of their inputs."""
        readers: dict[int, list[tuple[int, int]]] = {}
        for place, step in enumerate(self.steps):
            for edge, source in enumerate(step.sources):
                readers.setdefault(source, []).append((place, edge))
        return readers

    def consumers(self, leaves: Mapping[str, torch.Tensor]) -> dict[str, list[Consumer]]:
        """Every node that reads each of `leaves`, tensors that require a gradient.

        A tensor that no output depends on has none.
        """
        readers = self.readers
        uses: dict[str, list[Consumer]] = {}
        for name, leaf in leaves.items():
            place = self._places.get(get_gradient_edge(leaf).node, -2)
            uses[name] = self._through_views(place, (), readers)
        return uses

    def _through_views(
        self,
        place: int,
        views: tuple[tuple[str, Shape], ...],
        readers: Mapping[int, list[tuple[int, int]]],
    ) -> list[Consumer]:
        """The readers of a node's output. A view is replaced by its own readers."""
        uses = []
        for reader, edge in readers.get(place, ()):
            operation = self.steps[reader].operation
            if operation in _VIEWS:
                more = (*views, (operation, self.shape(reader)))
                uses += self._through_views(reader, more, readers)
            else:
                uses.append(Consumer(reader, edge, views))
        return uses


def _shapes(node: Node) -> tuple[Shape, ...]:
    return tuple(tuple(each.shape) for each in getattr(node, "_input_metadata", ()))
