"""Gradients of single samples for the operations in which networks use most of their parameters.

A *signal* is the gradient of an output with respect to the result of an operation. Each operation's
function takes the signals of k outputs for B samples, `[B, k, T, ...]`. It returns the gradients of every
sample, `[B, k * entry]`, or the factors of batched matrix products that give them. Only inner products
of gradients are needed. So the order of the entries is free, but it is the same for all samples.

An operation is recognised by the name of its node in autograd's graph and by which of its inputs the
parameter is. A parameter that is used in any other way is left to the generic form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch

from mpi_ntkdfl.model.module.folded import Folded, Gradients, unfolded
from mpi_ntkdfl.model.module.graph import Consumer, Graph, Node, Shape


class Order(Enum):
    """Which entries of an array belong to which sample, for B samples with T entries each."""

    FIRST = "axis 0 has B T entries; those of a sample follow each other"
    LAST = "axis 0 has T B entries; those of the same place follow each other"
    SECOND = "axis 0 has T entries, axis 1 has B"

    def fits(self, shape: Shape, samples: int) -> bool:
        """Whether an array of this shape can be in this order."""
        if 0 in shape:
            return False
        if self is Order.SECOND:
            return len(shape) > 2 and shape[1] == samples
        return len(shape) > 1 and shape[0] % samples == 0

    def by_sample(self, tensor: torch.Tensor, samples: int) -> torch.Tensor:
        """`tensor` as `[sample, T, ...]`."""
        if self is Order.SECOND:
            return tensor.transpose(0, 1)
        if self is Order.LAST:
            return tensor.reshape(-1, samples, *tensor.shape[1:]).transpose(0, 1)
        return tensor.reshape(samples, -1, *tensor.shape[1:])


Factors = tuple[torch.Tensor, torch.Tensor]
"""Gradients as products of `[batch, a, place]` and `[batch, place, b]`. The results of each sample follow
each other, by outputs or by groups of channels."""

Gradient = Callable[["Use", torch.Tensor], torch.Tensor | Factors]


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a graph.

    Attributes:
        node: the node.
        place: the node's number in the graph.
        edge: which of its inputs the parameter is.
        order: to which samples the entries of its output belong.
        samples: B.
        shape: shape of the parameter where it enters the node, after views.
        output: shape of the output of the node.
        gradient: computes the gradients of single samples `[sample, k * entry]`, or their factors, from
            signals.
        linear: whether it is a product of `[sample, in]` with the parameter, at one place per sample.
    """

    node: Node
    place: int
    edge: int
    order: Order
    samples: int
    shape: Shape
    output: Shape
    gradient: Gradient
    linear: bool = False

    def signals(self, gradients: Gradients, count: int) -> torch.Tensor:
        """The signals `[sample, k, T, ...]` from gradients at the output of the node."""
        if isinstance(gradients, Folded):
            if (gradients.axis, self.order) == (0, Order.FIRST):
                return torch.unflatten(gradients.tensor, 0, (self.samples, count, -1))
            if (gradients.axis, self.order) == (1, Order.SECOND):
                return torch.unflatten(gradients.tensor, 1, (self.samples, count)).movedim(0, 2)
        parts = unfolded(gradients, self.samples, count)
        return torch.stack([self.ordered(part) for part in parts], 1)

    def gradients(self, signals: torch.Tensor) -> torch.Tensor:
        """The gradients of single samples from the signals at `node`, `[sample, k * entry]`."""
        out = signals.new_empty(self.samples, signals.shape[1] * math.prod(self.shape))
        self.write(signals, out)
        return out

    def write(self, signals: torch.Tensor, out: torch.Tensor) -> None:
        """Computes `gradients` in `out` `[sample, k * entry]`; a product needs no copy then."""
        parts = self.gradient(self, signals)
        if isinstance(parts, torch.Tensor):
            out.copy_(parts)
            return
        left, right = parts
        if len(left) == self.samples or out.is_contiguous():
            torch.bmm(left, right, out=out.view(len(left), left.shape[1], right.shape[2]))
        else:
            out.copy_(torch.bmm(left, right).view(self.samples, -1))

    def other_numbers(self, graph: Graph) -> int:
        """How many numbers the patches of one sample have, for a convolution."""
        if self.gradient is not _convolution:
            return 0
        groups: int = self.node._saved_groups
        return groups * math.prod((*self.shape[1:], *graph.shape(self.place)[2:]))

    def ordered(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` as `[sample, T, ...]`."""
        return self.order.by_sample(tensor, self.samples)


def use_of(
    graph: Graph, consumer: Consumer, order: Order, samples: int, shape: Shape
) -> Use | None:
    """The use that `consumer` is, of a parameter with `shape`; None if it is not recognised."""
    node, step = graph.nodes[consumer.place], graph.steps[consumer.place]
    rule = _RULES.get((step.operation, consumer.edge))
    if rule is None or not order.fits(graph.shape(consumer.place), samples):
        return None
    entering = consumer.views[-1][1] if consumer.views else shape
    output = graph.shape(consumer.place)
    one_place = output[0] == samples
    use = Use(
        node=node,
        place=consumer.place,
        edge=consumer.edge,
        order=order,
        samples=samples,
        shape=entering,
        output=output,
        gradient=rule.gradient,
        linear=one_place and rule.gradient in (_linear_mm, _linear_addmm),
    )
    return use if rule.fits(use, output) else None


def linear_inputs(use: Use) -> torch.Tensor:
    """The other factor `[sample, in]` of a use that is `linear`."""
    saved = "_saved_mat1" if use.gradient is _linear_addmm else "_saved_self"
    inputs: torch.Tensor = getattr(use.node, saved)
    return inputs


# ------------------------------------------------------------------------------------ matrix products


def _linear(inputs: torch.Tensor, use: Use, signals: torch.Tensor) -> Factors:
    """`sum_t a_t s_t^T` of inputs a `[sample, T, in]` and signals s `[sample, k, T, out]`.

    Long products need one of them in another order. The narrower one is copied.
    """
    a = use.ordered(inputs)
    if a.shape[-1] < signals.shape[-1]:
        repeated = a[:, None].expand(-1, signals.shape[1], -1, -1)
        return repeated.flatten(0, 1).transpose(1, 2), signals.flatten(0, 1)
    return a.transpose(1, 2), signals.transpose(1, 2).flatten(2)


def _linear_addmm(use: Use, signals: torch.Tensor) -> Factors:
    return _linear(use.node._saved_mat1, use, signals)


def _linear_mm(use: Use, signals: torch.Tensor) -> Factors:
    return _linear(use.node._saved_self, use, signals)


def _convolution(use: Use, signals: torch.Tensor) -> Factors:
    """As `_linear`, with the patches that the kernel sees; by groups of channels."""
    node, samples, groups = use.node, use.samples, use.node._saved_groups
    images, flat = node._saved_input, len(use.shape) == 3
    stride, padding, dilation = (
        tuple(getattr(node, f"_saved_{name}")) for name in ("stride", "padding", "dilation")
    )
    kernel = tuple(use.shape[2:])
    if flat:
        images, kernel = images.unsqueeze(2), (1, *kernel)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    patches = _patches(images, kernel, dilation, padding, stride)
    s = signals.flatten(4).squeeze(2)
    if groups == 1:
        return s.flatten(1, 2), patches.transpose(1, 2)
    count, places = s.shape[1], s.shape[-1]
    s = s.view(samples, count, groups, -1, places).transpose(1, 2)
    s = s.reshape(samples * groups, -1, places)
    patches = patches.reshape(samples * groups, -1, places)
    return s, patches.transpose(1, 2)


def _patches(
    images: torch.Tensor,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> torch.Tensor:
    """`torch.nn.functional.unfold`, which takes up to three times as long as this copy of a view."""
    view = torch.nn.functional.pad(images, (padding[1],) * 2 + (padding[0],) * 2)
    for axis, (length, step) in enumerate(zip(kernel, dilation, strict=True)):
        view = view.unfold(2 + axis, step * (length - 1) + 1, stride[axis])[..., ::step]
    return view.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def _embedding(use: Use, signals: torch.Tensor) -> torch.Tensor:
    """The signals of the places that read a row, added up per row."""
    node, samples, rows = use.node, use.samples, use.shape[0]
    s = signals.flatten(2, -2).transpose(1, 2)
    index = use.ordered(node._saved_indices.unsqueeze(-1)).reshape(samples, -1)
    if 0 <= node._saved_padding_idx < rows:
        s = s * (index != node._saved_padding_idx)[..., None, None]
    index = index + rows * torch.arange(samples, device=index.device)[:, None]
    total = s.new_zeros(samples * rows, s[0, 0].numel())
    return total.index_add_(0, index.flatten(), s.flatten(0, 1).flatten(1)).view(samples, -1)


# ------------------------------------------------------------------------------------ entry by entry


def _added(use: Use, signals: torch.Tensor) -> torch.Tensor:
    """Adds up the entries of each sample that a broadcast parameter was copied to."""
    target = _target(use, len(use.output))
    assert target is not None
    own = signals.shape[2:]
    axes = [axis for axis, size in enumerate(target) if size == 1 and own[axis] != 1]
    return (signals.sum([2 + axis for axis in axes]) if axes else signals).flatten(1)


def _target(use: Use, dimensions: int) -> Shape | None:
    """Shape of one sample's gradient, with the axis of places first; None if samples share no entry."""
    if len(use.shape) > dimensions:
        return None
    padded = (1,) * (dimensions - len(use.shape)) + use.shape
    axis = 1 if use.order is Order.SECOND else 0
    if padded[axis] != 1:
        return None
    return (padded[0], *padded[2:]) if axis else padded


def _times(factor: torch.Tensor, use: Use, signals: torch.Tensor) -> torch.Tensor:
    return _added(use, signals * use.ordered(factor.expand(use.output)).unsqueeze(1))


def _times_saved(name: str, use: Use, signals: torch.Tensor) -> torch.Tensor:
    return _times(getattr(use.node, name), use, signals)


def _layer_norm(use: Use, signals: torch.Tensor) -> torch.Tensor:
    node = use.node
    return _times((node._saved_input - node._saved_result1) * node._saved_result2, use, signals)


def _channels(use: Use, signals: torch.Tensor) -> torch.Tensor:
    """Sums over the places of each channel, the axis 1 of the output."""
    return signals.flatten(4).sum(-1).flatten(1)


def _group_norm(use: Use, signals: torch.Tensor) -> torch.Tensor:
    node = use.node
    x = node._saved_input
    groups = x.reshape(use.samples, node._saved_group, -1)
    mean, deviation = (
        each.view(*groups.shape[:2], 1) for each in (node._saved_result1, node._saved_result2)
    )
    normal = ((groups - mean) * deviation).view(x.shape)
    return _channels(use, signals * normal[:, None, None])


# ---------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class _Rule:
    """How to compute gradients for one input of an operation, and when this is right."""

    gradient: Gradient
    fits: Callable[[Use, Shape], bool]


def _always(use: Use, output: Shape) -> bool:
    return True


def _unscaled(use: Use, output: Shape) -> bool:
    return bool(use.node._saved_alpha == 1)


def _bias_of_rows(use: Use, output: Shape) -> bool:
    return use.node._saved_beta == 1 and use.shape[-1] == output[-1] and _broadcast(use, output)


def _broadcast(use: Use, output: Shape) -> bool:
    return _target(use, len(output)) is not None


def _added_whole(use: Use, output: Shape) -> bool:
    return use.node._saved_alpha == 1 and _broadcast(use, output)


def _images(use: Use, output: Shape) -> bool:
    """One sample per image, and one or two axes of places."""
    node = use.node
    return not node._saved_transposed and len(output) in (3, 4) and _one_each(use, output)


def _one_each(use: Use, output: Shape) -> bool:
    return use.order is Order.FIRST and output[0] == use.samples


def _plain_table(use: Use, output: Shape) -> bool:
    return not use.node._saved_scale_grad_by_freq


_RULES = {
    ("AddmmBackward0", 0): _Rule(_added, _bias_of_rows),
    ("AddmmBackward0", 2): _Rule(_linear_addmm, _unscaled),
    ("MmBackward0", 1): _Rule(_linear_mm, _always),
    ("ConvolutionBackward0", 1): _Rule(_convolution, _images),
    ("ConvolutionBackward0", 2): _Rule(_channels, _images),
    ("NativeGroupNormBackward0", 1): _Rule(_group_norm, _one_each),
    ("NativeGroupNormBackward0", 2): _Rule(_channels, _one_each),
    ("NativeLayerNormBackward0", 1): _Rule(_layer_norm, _broadcast),
    ("NativeLayerNormBackward0", 2): _Rule(_added, _broadcast),
    ("AddBackward0", 0): _Rule(_added, _broadcast),
    ("AddBackward0", 1): _Rule(_added, _added_whole),
    ("ExpandBackward0", 0): _Rule(_added, _broadcast),
    ("MulBackward0", 0): _Rule(partial(_times_saved, "_saved_other"), _broadcast),
    ("MulBackward0", 1): _Rule(partial(_times_saved, "_saved_self"), _broadcast),
    ("EmbeddingBackward0", 0): _Rule(_embedding, _plain_table),
}
