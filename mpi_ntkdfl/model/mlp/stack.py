"""The layers of a multilayer perceptron: the layout of their weights, and the passes through them.

Inputs are `[sample, feature]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from mpi_ntkdfl.model.compiled_levels import MOST_HIDDEN, MOST_OUTPUTS, CompiledFixedPoint
from mpi_ntkdfl.model.levels import Inputs, prepared
from mpi_ntkdfl.model.params import Layout, aligned


@dataclass(frozen=True)
class Activations:
    """The arrays that one forward pass keeps.

    Attributes:
        inputs: inputs of each layer, `[sample, fan_in]`; the first are the network's own inputs.
        outputs: the network's outputs before the softmax, `[sample, output]`.
    """

    inputs: list[torch.Tensor]
    outputs: torch.Tensor


@dataclass(frozen=True)
class Stack:
    """Linear layers with ReLU between them.

    Attributes:
        widths: features, hidden widths, outputs; the paper's network is (784, 100, 10).
    """

    widths: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Number of weight matrices."""
        return len(self.widths) - 1

    @cached_property
    def layout(self) -> Layout:
        """`fc1.weight [fan_out, fan_in], fc1.bias [fan_out], fc2.weight, ...` as torch lays it out."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(
            zip(self.widths, self.widths[1:], strict=False), 1
        ):
            shapes[f"fc{layer}.weight"] = (fan_out, fan_in)
            shapes[f"fc{layer}.bias"] = (fan_out,)
        return Layout(shapes)

    def weights_and_biases(self, params: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`(W [..., fan_out, fan_in], b [..., fan_out])` of each layer, views of `params` `[..., P]`."""
        tensors = list(self.layout.unflatten(params).values())
        return list(zip(tensors[::2], tensors[1::2], strict=True))

    def activations(self, params: torch.Tensor, inputs: torch.Tensor) -> Activations:
        """A forward pass that keeps the inputs of every layer.

        Args:
            params: `[P]`.
            inputs: `[sample, feature]`.
        """
        values, kept = inputs, []
        stages = self.weights_and_biases(aligned(params))
        for weight, bias in stages[:-1]:
            kept.append(values)
            values = torch.nn.functional.linear(values, weight, bias).relu_()
        kept.append(values)
        return Activations(kept, torch.nn.functional.linear(values, *stages[-1]))

    def functions(self, params: torch.Tensor, like: Inputs) -> Callable[[Inputs], torch.Tensor]:
        """A function that computes the outputs of several networks. See `Network.functions`.

        The samples are the last axis in memory. On a CPU this makes products faster by a fifth, and the
        sums over outputs in the losses ten times faster.

        Args:
            params: `[network, P]`.
            like: inputs of the same kind as those with which the function will be called.

        Returns:
            A function from inputs `[sample, feature]` to outputs `[network, sample, output]`, which are
            a transposed view.
        """
        (first, shift), *others = self.weights_and_biases(aligned(params))
        # One product computes the first layers of all networks.
        weights = prepared(first.reshape(-1, first.shape[2]), like)

        if isinstance(weights, CompiledFixedPoint) and len(params) == len(others) == 1:
            ((weight, bias),) = others
            if weight.shape[1] <= MOST_OUTPUTS and weight.shape[2] <= MOST_HIDDEN:
                fused = weights.second_layer(shift[0], weight[0], bias[0])
                return lambda inputs: fused(inputs).T[None]

        def outputs(inputs: Inputs) -> torch.Tensor:
            values = weights.times(inputs).view(len(params), -1, len(inputs))
            values.add_(shift[:, :, None])
            for weight, bias in others:
                values = torch.baddbmm(bias[:, :, None], weight, values.relu_())
            return values.transpose(1, 2)

        return outputs
