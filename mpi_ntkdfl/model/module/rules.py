"""What nodes of autograd's graph do to folded gradients. See `backward`.

A rule returns the gradients for all inputs of a node, or None if it does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from mpi_ntkdfl.model.module.folded import Folded, Step, as_tuple
from mpi_ntkdfl.model.module.graph import Node, Shape

Rule = Callable[["Step", Sequence[Folded]], "list[Folded | None] | None"]


def _divisible(step: Step, gradients: Sequence[Folded], *shapes: Shape) -> bool:
    """Whether gradients are folded on the first axis, and can be for tensors of these shapes."""
    return gradients[0].axis == 0 and all(
        shape and shape[0] and shape[0] % step.samples == 0 for shape in shapes
    )


def _entry_by_entry(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    """Functions of single entries: the gradient times the derivative, which a unit gradient gives."""
    if not _divisible(step, gradients, step.shape):
        return None
    own = sum(map(bool, step.sources)) == 1 and gradients[0].own
    tensor = gradients[0].tensor
    if any(source and source[2] != step.shape for source in step.sources):
        return None
    derivatives = as_tuple(step.node(tensor.new_ones(()).expand(step.shape)))
    found: list[Folded | None] = []
    for source, derivative in zip(step.sources, derivatives, strict=True):
        if not source or derivative is None:
            found.append(None)
        elif own:
            step.folded_blocks(tensor).mul_(step.blocks(derivative))
            found.append(Folded(tensor))
        else:
            product = step.folded_blocks(tensor) * step.blocks(derivative)
            found.append(Folded(product.flatten(0, 2)))
    return found


def _passed(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    """Operations that hand their gradient to inputs of the same shape."""
    if any(source and source[2] != step.shape for source in step.sources):
        return None
    if getattr(step.node, "_saved_alpha", 1) != 1:
        return None
    (whole,) = gradients
    own = whole.own and sum(map(bool, step.sources)) == 1
    passed = Folded(whole.tensor, whole.axis, own)
    return [passed if source else None for source in step.sources]


def _reshaped(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    source = step.sources[0]
    if source is None or not _divisible(step, gradients, step.shape, source[2]):
        return None
    (whole,) = gradients
    tensor = whole.tensor.reshape(step.folded_shape(source[2]))
    own = whole.own or tensor.data_ptr() != whole.tensor.data_ptr()
    return [Folded(tensor, 0, own)]


def _permuted(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    (whole,) = gradients
    dimensions = len(step.shape)
    order = list(range(dimensions))
    if step.node.name() == "PermuteBackward0":
        order = [_axis(axis, dimensions) for axis in step.node._saved_dims]
    else:
        one = _axis(step.node._saved_dim0, dimensions)
        other = _axis(step.node._saved_dim1, dimensions)
        order[one], order[other] = order[other], order[one]
    back = [order.index(axis) for axis in range(dimensions)]
    return [Folded(whole.tensor.permute(back), order[whole.axis], whole.own)]


def _axis(axis: int, dimensions: int) -> int:
    """An axis as torch saves it: negative numbers come without a sign."""
    return axis - 2**64 + dimensions if axis >= 2**63 else axis % dimensions


def _unbound(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    if len(gradients) != len(step.node._input_metadata):
        return None
    axis = _axis(step.node._saved_dim, len(step.shape) + 1)
    tensor = torch.stack([each.tensor for each in gradients], axis)
    folded = gradients[0].axis
    return [Folded(tensor, folded + (axis <= folded))]


def _mm(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    if not _divisible(step, gradients, step.shape):
        return None
    return step.only(0, gradients[0].tensor @ step.node._saved_mat2.T)


def _addmm(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    if not _divisible(step, gradients, step.shape) or step.node._saved_alpha != 1:
        return None
    return step.only(1, gradients[0].tensor @ step.node._saved_mat2.T)


def _bmm(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    if not _divisible(step, gradients, step.shape):
        return None
    tensor, node = gradients[0].tensor, step.node
    first = second = None
    if step.sources[0]:
        first = Folded(torch.bmm(tensor, step.repeated(node._saved_mat2).transpose(1, 2)))
    if step.sources[1]:
        second = Folded(torch.bmm(step.repeated(node._saved_self).transpose(1, 2), tensor))
    return [first, second]


def _softmax(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    if not _divisible(step, gradients, step.shape) or len(step.shape) < 2:
        return None
    axis = _axis(step.node._saved_dim, len(step.shape))
    result = step.node._saved_result
    if axis == 0 or result.dtype != gradients[0].tensor.dtype:
        return None
    tensor = torch._softmax_backward_data(
        gradients[0].tensor, step.repeated(result), axis, result.dtype
    )
    return [Folded(tensor)]


def _layer_norm(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    node = step.node
    normalised = node._saved_normalized_shape
    if not _divisible(step, gradients, step.shape) or len(normalised) >= len(step.shape):
        return None
    tensor, _, _ = torch.ops.aten.native_layer_norm_backward(
        gradients[0].tensor,
        step.repeated(node._saved_input),
        normalised,
        step.repeated(node._saved_result1),
        step.repeated(node._saved_result2),
        node._saved_weight,
        node._saved_bias,
        [True, False, False],
    )
    return step.only(0, tensor)


def _group_norm(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    """All samples and combinations are one sample with many channels here.

    So the gradients of the scale and the shift, which torch adds up over samples, are those of each
    sample.
    """
    node = step.node
    if not _divisible(step, gradients, step.shape) or node._saved_N != step.shape[0]:
        return None
    weight, copies = node._saved_weight, node._saved_N * step.count
    affine = weight is not None
    tensor, scale, shift = torch.ops.aten.native_group_norm_backward(
        gradients[0].tensor.contiguous(),
        step.repeated(node._saved_input),
        step.repeated(node._saved_result1),
        step.repeated(node._saved_result2),
        weight.repeat(copies) if affine else None,
        1,
        copies * node._saved_C,
        node._saved_HxW,
        copies * node._saved_group,
        [True, affine, affine],
    )
    if affine:
        step.known[1], step.known[2] = (each.view(step.samples, -1) for each in (scale, shift))
    found = tensor.view(step.folded_shape(step.shape))
    return [Folded(found), *[None] * (len(step.sources) - 1)]


def _convolution(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    node, source = step.node, step.sources[0]
    if source is None or not _divisible(step, gradients, step.shape, source[2]):
        return None
    tensor = gradients[0].tensor
    if _picks(node):
        return step.only(0, _spread(step, tensor, source[2]))
    gradient, _, _ = torch.ops.aten.convolution_backward(
        tensor,
        tensor.new_empty(step.folded_shape(source[2])),  # only its shape matters
        node._saved_weight,
        None,
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_transposed,
        node._saved_output_padding,
        node._saved_groups,
        [True, False, False],
    )
    return step.only(0, gradient)


def _picks(node: Node) -> bool:
    """Whether a convolution multiplies some of the pixels, one by one, by a matrix."""
    return (
        node._saved_weight.dim() == 4
        and node._saved_weight[0, 0].numel() == 1
        and max(node._saved_stride) > 1
        and max(node._saved_padding) == 0
        and node._saved_groups == 1
        and not node._saved_transposed
    )


def _spread(step: Step, tensor: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The gradient of a convolution that `_picks`, for which torch takes several times as long."""
    rows, columns = step.node._saved_stride
    found = tensor.new_zeros(step.folded_shape(shape))
    product = step.node._saved_weight.flatten(1).T @ tensor.flatten(2)
    found[:, :, ::rows, ::columns] = product.view(len(tensor), -1, *tensor.shape[2:])
    return found


def _max_pooled(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    node, source = step.node, step.sources[0]
    if source is None or len(step.shape) != 4 or not _divisible(step, gradients, step.shape):
        return None
    tensor = gradients[0].tensor
    gradient = torch.ops.aten.max_pool2d_with_indices_backward(
        tensor,
        tensor.new_empty(step.folded_shape(source[2])),  # only its shape matters
        node._saved_kernel_size,
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_ceil_mode,
        step.repeated(node._saved_result1),
    )
    return [Folded(gradient)]


def _mean(step: Step, gradients: Sequence[Folded]) -> list[Folded | None] | None:
    """The mean over some axes."""
    source = step.sources[0]
    if source is None or not _divisible(step, gradients, step.shape, source[2]):
        return None
    shape = source[2]
    axes = sorted(_axis(axis, len(shape)) for axis in step.node._saved_dim)
    if not axes or axes[0] == 0:
        return None
    tensor = gradients[0].tensor / math.prod(shape[axis] for axis in axes)
    if not step.node._saved_keepdim:
        for axis in axes:
            tensor = tensor.unsqueeze(axis)
    return [Folded(tensor.expand(step.folded_shape(shape)), 0, own=False)]


GROUP_NORM = "NativeGroupNormBackward0"

RULES: dict[str, Rule] = {
    "AddBackward0": _passed,
    "AddmmBackward0": _addmm,
    "BmmBackward0": _bmm,
    "CloneBackward0": _passed,
    "ConvolutionBackward0": _convolution,
    "ExpandBackward0": _passed,
    "MaxPool2DWithIndicesBackward0": _max_pooled,
    "MeanBackward1": _mean,
    "MmBackward0": _mm,
    GROUP_NORM: _group_norm,
    "NativeLayerNormBackward0": _layer_norm,
    "PermuteBackward0": _permuted,
    "SoftmaxBackward0": _softmax,
    "TransposeBackward0": _permuted,
    "UnbindBackward0": _unbound,
    "SqueezeBackward1": _reshaped,
    "UnsqueezeBackward0": _reshaped,
    "UnsafeViewBackward0": _reshaped,
    "ViewBackward0": _reshaped,
    **dict.fromkeys(
        (
            *("EluBackward0", "GeluBackward0", "HardswishBackward0", "HardtanhBackward0"),
            *("LeakyReluBackward0", "MishBackward0", "MulBackward0", "ReluBackward0"),
            *("SigmoidBackward0", "SiluBackward0", "SoftplusBackward0", "TanhBackward0"),
        ),
        _entry_by_entry,
    ),
}
