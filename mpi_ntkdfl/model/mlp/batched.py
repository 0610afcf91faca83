"""The networks of several clients at once, as batched matrix products.

The weights and the bias of a layer are one matrix `[client, out, in + 1]`, and the inputs have a column
of ones at the end. All widths are padded with zeros to whole cache lines, so that the matrices of every
client start on a cache line. Products round differently if their operands do not start on a cache line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpi_ntkdfl.model.mlp.stack import Stack

LINE = 16
"""Widths are padded to multiples of this: one cache line of float32, two of float64."""


def padded(width: int) -> int:
    """`width` rounded up to a multiple of `LINE`."""
    return -(-width // LINE) * LINE


@dataclass(frozen=True)
class Factors:
    """The gradient signals^T inputs with respect to a layer's matrices, kept as its two factors.

    The product itself is seldom needed.

    Attributes:
        signals: `[client, sample, out]`.
        inputs: `[client, sample, in]`.
    """

    signals: torch.Tensor
    inputs: torch.Tensor

    def add_to(self, array: torch.Tensor, keep: float, times: float) -> None:
        """`array = keep * array + times * gradient`, in place. See `Slope`."""
        array.baddbmm_(self.signals.transpose(1, 2), self.inputs, beta=keep, alpha=times)

    def dense(self) -> torch.Tensor:
        """The gradient `[client, out, in]`."""
        return torch.bmm(self.signals.transpose(1, 2), self.inputs)


@dataclass(frozen=True)
class BatchedStack:
    """The function of one network for a batch of clients that have different weights.

    In shapes, `in` and `out` are padded widths. The axis `in` of a layer holds its inputs, a one, and
    zeros.

    Attributes:
        network: the network.
    """

    network: Stack

    @property
    def padded_widths(self) -> tuple[int, ...]:
        """Padded widths of all layers' inputs, with the column of ones, and of the outputs."""
        *inner, last = self.network.widths
        return (*(padded(width + 1) for width in inner), padded(last))

    def pack(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Layer matrices `[client, out, in]` of flat parameters `[client, param]`."""
        layers, layout = [], self.network.layout
        pieces = torch.split(rows, list(layout.sizes), dim=1)
        for (weight, bias), shape, wide_in, wide_out in zip(
            zip(pieces[::2], pieces[1::2], strict=True),
            list(layout.shapes.values())[::2],
            self.padded_widths,
            self.padded_widths[1:],
            strict=False,
        ):
            fan_out, fan_in = shape
            layer = rows.new_zeros(len(rows), wide_out, wide_in)
            layer[:, :fan_out, :fan_in] = weight.reshape(-1, fan_out, fan_in)
            layer[:, :fan_out, fan_in] = bias
            layers.append(layer)
        return layers

    def unpack(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Flat parameters `[client, param]` of layer matrices `[client, out, in]`."""
        pieces = []
        for layer, fan_in, fan_out in zip(
            layers, self.network.widths, self.network.widths[1:], strict=False
        ):
            pieces.append(layer[:, :fan_out, :fan_in].flatten(1))
            pieces.append(layer[:, :fan_out, fan_in])
        return torch.cat(pieces, dim=1)

    def backpropagate(
        self,
        first: torch.Tensor,
        upper: Sequence[torch.Tensor],
        targets: torch.Tensor,
        shares: torch.Tensor,
        shift: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Factors]]:
        """Computes the cross-entropy from the first layer's outputs, and its gradients back to them.

        Args:
            first: outputs of the first layer before its ReLU, `[client, sample, out]`; overwritten.
            upper: matrices of all layers but the first.
            targets: one-hot labels `[client, sample, output]`.
            shares: weight of each sample's loss, `[client, sample, 1]`; 0 for padding.
            shift: what is added to the outputs in the loss, `[client, 1, output]`; None for nothing.

        Returns:
            The gradient of the loss with respect to `first`, and the factors of the gradients with
            respect to `upper`.
        """
        values, hidden = first, []
        for layer, width in zip(upper, self.network.widths[1:], strict=False):
            values.clamp_min_(0)[..., width] = 1
            hidden.append(values)
            values = torch.bmm(values, layer.transpose(1, 2))
        signals, classes = torch.zeros_like(values), self.network.widths[-1]
        outputs = values[..., :classes] if shift is None else values[..., :classes] + shift
        torch.sub(torch.softmax(outputs, 2), targets, out=signals[..., :classes])
        signals.mul_(shares)
        factors: list[Factors] = []
        for layer, inputs, width in zip(
            reversed(upper), reversed(hidden), self.network.widths[-2:0:-1], strict=True
        ):
            factors.insert(0, Factors(signals, inputs))
            signals = torch.bmm(signals, layer)
            signals = torch.ops.aten.threshold_backward(signals, inputs, 0)
            signals[..., width] = 0
        return signals, factors

    def gradients(
        self,
        layers: Sequence[torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        shares: torch.Tensor,
        shift: torch.Tensor | None = None,
    ) -> list[Factors]:
        """Gradients of the cross-entropy with respect to each of `layers`.

        Args:
            layers: matrices `[client, out, in]`.
            inputs: padded inputs with their column of ones, `[client, sample, in]`.
            targets: one-hot labels `[client, sample, output]`.
            shares: weight of each sample's loss, `[client, sample, 1]`.
            shift: what is added to the outputs in the loss, `[client, 1, output]`; None for nothing.
        """
        first = torch.bmm(inputs, layers[0].transpose(1, 2))
        signals, upper = self.backpropagate(first, layers[1:], targets, shares, shift)
        return [Factors(signals, inputs), *upper]
