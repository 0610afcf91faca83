"""Exact Jacobians of a multilayer perceptron from the structure of its layers.

With layer inputs `a_l [sample, fan_in]`, pre-activations `z_l = W_l a_l + b_l` and backpropagated
signals `s_l = df_c / dz_l [sample, output, fan_out]`,

    dJ_c / dW_l = s_lc a_l^T,     dJ_c / db_l = s_lc,
    sum_c J_c J_c^T = sum_l (a_l a_l^T + 1) * (sum_c s_lc s_lc^T).

The signals follow from the layer inputs and the weights (a ReLU is open if the next layer's input is
positive). A client that needs a neighbour's Jacobian at `w_bar` knows `w_bar`. So the message consists of
the layer inputs: 0.7 MB for 200 samples of the paper's network, whose dense Jacobian takes 636 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch

from mpi_ntkdfl.model.jacobian import symmetric_matrix
from mpi_ntkdfl.model.levels import Levels
from mpi_ntkdfl.model.mlp.signals import backpropagated
from mpi_ntkdfl.model.mlp.stack import Stack
from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.model.projection import Part, Projection


class LayerInputs(Protocol):
    """The inputs `a` of a layer, `[sample, fan_in]`, in some form."""

    def gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """A block of `a a^T + 1`, where the 1 is for the bias; the caller may overwrite it."""


@dataclass(frozen=True)
class PlainInputs:
    """Inputs of any values, `[sample, fan_in]`."""

    values: torch.Tensor

    def gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """A block of `a a^T + 1`."""
        return (self.values[rows] @ self.values[columns].T).add_(1)


class FactoredJacobian:
    """The exact Jacobian as the inputs and the backpropagated signals of each layer. See `Jacobian`."""

    def __init__(
        self,
        network: Stack,
        params: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        levels: Levels | None = None,
    ) -> None:
        """Builds the Jacobian at `params` from a forward pass there.

        Args:
            network: the network.
            params: `[P]`, the point of linearisation.
            inputs: inputs of each layer, `[sample, fan_in]`, as `Stack.activations` returns them.
            levels: the levels on which the network's own inputs lie; None if they do not.

        Raises:
            ValueError: if the inputs do not fit the network's layers.
        """
        got = tuple(x.shape[1] for x in inputs)
        if got != network.widths[:-1] or len({x.shape[0] for x in inputs}) != 1:
            raise ValueError(f"expected layer inputs of widths {network.widths[:-1]}, got {got}")
        self.network, self._params = network, params
        self.inputs = [aligned(x) for x in inputs]
        self.signals = backpropagated(network, params, self.inputs)
        self._levels = levels

    @cached_property
    def outputs(self) -> torch.Tensor:
        """Outputs of the network, `[sample, output]`."""
        last = self.network.weights_and_biases(aligned(self._params))[-1]
        return torch.nn.functional.linear(self.inputs[-1], *last)

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`, as a sum over layers."""
        layers: list[LayerInputs] = [PlainInputs(values) for values in self.inputs]
        if self._levels:
            layers[0] = self._levels.find(self.inputs[0])

        def block(rows: slice, columns: slice) -> torch.Tensor:
            terms = (
                of.gram(rows, columns).mul_(signals.trace_gram(rows, columns))
                for of, signals in zip(layers, self.signals, strict=True)
            )
            total = next(terms)
            for term in terms:
                total.add_(term)
            return total

        return symmetric_matrix(self.inputs[0].shape[0], block, self.inputs[0])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` for `residuals` `[tau, sample, output]`: `[tau, param]`."""
        pieces = []
        for layer_inputs, signals in zip(self.inputs, self.signals, strict=True):
            back = signals.contract(residuals)
            pieces.append(torch.matmul(back.transpose(1, 2), layer_inputs).flatten(1))
            pieces.append(back.sum(1))
        return torch.cat(pieces, dim=1)

    def dense(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries of the parameters `start <= p < stop`: `[sample, output, stop - start]`."""
        layout = self.network.layout
        stop = layout.size if stop is None else stop
        pieces = []
        for index, (low, high) in enumerate(pairwise(layout.offsets)):
            if low < stop and start < high:
                cut = self._entries(index, max(start, low) - low, min(stop, high) - low)
                pieces.append(cut)
        return torch.cat(pieces, dim=2)

    def projected(self, projection: Projection) -> torch.Tensor:
        """The projected entries, `[sample, output, column]`.

        The inputs of a layer are multiplied by its matrix first, so dense entries of projected layers
        never exist.
        """
        return projection.entries(self.dense, lambda part: self._projected(part, projection))

    def _projected(self, part: Part, projection: Projection) -> torch.Tensor:
        """One layer's entries, `[sample, output, k]`: `sum_o s_co (a P_o)` over its units o."""
        layer_inputs, signals = self.inputs[part.number], self.signals[part.number].dense()
        (samples, fan_in), fan_out = layer_inputs.shape, signals.shape[2]
        total = signals.new_zeros(samples, signals.shape[1], projection.width)
        step = max(projection.step // fan_in, 1)
        units = [range(first, min(first + step, fan_out)) for first in range(0, fan_out, step)]
        rows = projection.rows(part, [*(len(some) * fan_in for some in units), fan_out])
        for some in units:
            matrix = next(rows).view(len(some), fan_in, projection.width)
            passed = (layer_inputs @ matrix).transpose(0, 1)
            total.baddbmm_(aligned(signals[:, :, some.start : some.stop]), passed)
        return total.add_(signals @ next(rows))

    def _entries(self, index: int, start: int, stop: int) -> torch.Tensor:
        """Entries `start..stop` of tensor `index` of the layout (even: a weight, odd: a bias)."""
        layer_inputs, signals = self.inputs[index // 2], self.signals[index // 2].dense()
        if index % 2:
            return signals[:, :, start:stop]
        fan_in = layer_inputs.shape[1]
        first, last = start // fan_in, -(-stop // fan_in)
        rows = signals[:, :, first:last, None] * layer_inputs[:, None, None, :]
        return rows.flatten(2)[:, :, start - first * fan_in : stop - first * fan_in]


@dataclass(frozen=True)
class LayerInputsForm:
    """The layers' inputs as a message. See `FactoredForm`."""

    network: Stack

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """`layer0`, `layer1` ...: the width of each layer's input."""
        return {f"layer{index}": (width,) for index, width in enumerate(self.network.widths[:-1])}

    def arrays(
        self, params: torch.Tensor, inputs: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The layers' inputs at `params` `[P]`, and the outputs there; one forward pass."""
        passed = self.network.activations(params, inputs)
        return {f"layer{index}": each for index, each in enumerate(passed.inputs)}, passed.outputs

    def inputs(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The inputs of the first layer."""
        return arrays["layer0"]

    def rebuild(
        self, params: torch.Tensor, arrays: Mapping[str, torch.Tensor], levels: Levels | None
    ) -> FactoredJacobian:
        """The Jacobian at `params` `[P]`."""
        layers = [arrays[f"layer{index}"] for index in range(self.network.layers)]
        return FactoredJacobian(self.network, params, layers, levels)
