"""The layers of a multilayer perceptron: where their weights lie, and the passes through them.

Inputs are `[sample, feature]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from mpi_ntkdfl.model.levels import Inputs, prepared
from mpi_ntkdfl.model.params import Layout, aligned


@dataclass(frozen=True)
class Activations:
    """What one forward pass leaves behind.

    Attributes:
        inputs: input of each layer, `[sample, fan_in]`; the first is the network's own input.
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
        """Forward pass that keeps every layer's input.

        Args:
            params: `[P]`.
            inputs: `[sample, feature]`.
        """
        here, kept = inputs, []
        stages = self.weights_and_biases(aligned(params))
        for weight, bias in stages[:-1]:
            kept.append(here)
            here = torch.nn.functional.linear(here, weight, bias).relu_()
        kept.append(here)
        return Activations(kept, torch.nn.functional.linear(here, *stages[-1]))

    def functions(self, params: torch.Tensor, like: Inputs) -> Callable[[Inputs], torch.Tensor]:
        """What several networks make of the same inputs. See `Network.functions`.

        The samples are the last axis in memory: products of that form, and the losses' sums over
        outputs, are faster on CPU by a fifth and by ten times.

        Args:
            params: `[network, P]`.
            like: inputs of the kind to come.

        Returns:
            From inputs `[sample, feature]` to outputs `[network, sample, output]`, a transposed view.
        """
        (first, shift), *others = self.weights_and_biases(aligned(params))
        # The networks' first layers are one product.
        weights = prepared(first.reshape(-1, first.shape[2]), like)

        def outputs(inputs: Inputs) -> torch.Tensor:
            here = weights.times(inputs).view(len(params), -1, len(inputs))
            here.add_(shift[:, :, None])
            for weight, bias in others:
                here = torch.baddbmm(bias[:, :, None], weight, here.relu_())
            return here.transpose(1, 2)

        return outputs
