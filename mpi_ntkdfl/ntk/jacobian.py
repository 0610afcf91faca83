r"""Jacobians as operators.

For a client's network `f(x; w)` and samples `x_1..x_n` the Jacobian is `J [sample, output, param]`.
NTK-DFL never needs its entries one by one, only two things (`Jacobian`):

* the trace-Gram `sum_c J_c J_c^T [sample, sample]`, which is the kernel times the number of outputs;
* the transposed product `sum_c J_c^T R_c [param]` with residuals `R [sample, output]`.

`FactoredJacobian` gets both from the structure of a multilayer perceptron, exactly. With layer inputs
`a_l [sample, fan_in]`, pre-activations `z_l = W_l a_l + b_l` and backpropagated signals
`s_l = df_c / dz_l [sample, output, fan_out]`,

    dJ_c / dW_l = s_lc a_l^T,     dJ_c / db_l = s_lc,
    sum_c J_c J_c^T = sum_l (a_l a_l^T + 1) * (sum_c s_lc s_lc^T).

Signals follow from the layer inputs and the weights alone (the ReLU is open where the next layer's
input is positive), and whoever asks a neighbour for a Jacobian at `w_bar` knows `w_bar`. So the
message is the layer inputs: 0.7 MB for 200 samples of the paper's network, where the dense Jacobian
takes 636 MB. `dense` cuts the entries themselves, a range of parameters at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch

from mpi_ntkdfl.model.levels import Levels
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.runtime.device import on_gpu

# Rows of a tile of a symmetric matrix, at least.
_TILE = 128


class Jacobian(Protocol):
    """What the kernel and the update need of a Jacobian over N samples."""

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`."""
        ...

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` for each of `residuals` `[tau, sample, output]`: `[tau, param]`."""
        ...


def symmetric_matrix(
    samples: int, block: Callable[[slice, slice], torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    """A symmetric matrix `[sample, sample]` from the tiles of its lower triangle.

    On CPU little more than half of the work of the whole, and what is done to a tile stays in the
    cache. The tiling depends on the number of samples alone, so the bits do as well.

    Args:
        samples: N.
        block: gives the entries of a range of rows and a range of columns.
        like: any tensor of the type and device.
    """
    # A GPU takes the whole in less time than it takes to be told of the tiles.
    tiles = 1 if on_gpu(like.device) else max(samples // _TILE, 1)
    matrix = torch.empty(samples, samples, dtype=like.dtype, device=like.device)
    for start, stop in pairwise(samples * tile // tiles for tile in range(tiles + 1)):
        matrix[start:stop, :stop] = block(slice(start, stop), slice(stop))
        matrix[:start, start:stop] = matrix[start:stop, :start].T
    return matrix


def symmetric_product(a: torch.Tensor) -> torch.Tensor:
    """`a a^T` `[n, n]` of `a [n, k]`."""
    return symmetric_matrix(a.shape[0], lambda rows, columns: a[rows] @ a[columns].T, a)


class LayerInputs(Protocol):
    """What a layer is given, a `[sample, fan_in]`, in some form."""

    def gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """A block of `a a^T + 1`, the last for the bias; the caller's to overwrite."""
        ...


@dataclass(frozen=True)
class PlainInputs:
    """Inputs of any values, `[sample, fan_in]`."""

    values: torch.Tensor

    def gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """A block of `a a^T + 1`."""
        return (self.values[rows] @ self.values[columns].T).add_(1)


# -------------------------------------------------------------------------- backpropagated signals


class Signals(Protocol):
    """`s_lc = df_c / dz_l` of one layer for all samples, `[sample, output, fan_out]`, in some form."""

    def trace_gram(self, rows: slice, columns: slice) -> torch.Tensor | int:
        """A block of `sum_c s_c s_c^T` `[sample, sample]`, or the number it has in every entry."""
        ...

    def contract(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c R_c s_c` for `residuals` `[tau, sample, output]`: `[tau, sample, fan_out]`."""
        ...

    def dense(self) -> torch.Tensor:
        """All entries, `[sample, output, fan_out]`."""
        ...


@dataclass(frozen=True)
class UnitSignals:
    """Signals of the output layer, where `z` is the output itself: `s_c = e_c`.

    Attributes:
        outputs: their number.
        like: any array `[sample, ...]` of the samples, for their number, type and device.
    """

    outputs: int
    like: torch.Tensor

    def trace_gram(self, rows: slice, columns: slice) -> int:
        """The number of outputs, in every entry."""
        return self.outputs

    def contract(self, residuals: torch.Tensor) -> torch.Tensor:
        """The residuals themselves."""
        return residuals

    def dense(self) -> torch.Tensor:
        """The identity for every sample."""
        eye = torch.eye(self.outputs, dtype=self.like.dtype, device=self.like.device)
        return eye.expand(self.like.shape[0], -1, -1)


@dataclass(frozen=True)
class GatedSignals:
    """Signals of the last hidden layer: the output weights, where the sample's ReLU is open.

    Attributes:
        gates: 1 where open, `[sample, fan_out]`.
        readout: output weights, `[output, fan_out]`.
    """

    gates: torch.Tensor
    readout: torch.Tensor

    @cached_property
    def _scaled(self) -> torch.Tensor:
        return self.gates * self.readout.square().sum(0).sqrt()

    def trace_gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """`gates diag(sum_c readout_c^2) gates^T`: one product, not one for each output."""
        return self._scaled[rows] @ self._scaled[columns].T

    def contract(self, residuals: torch.Tensor) -> torch.Tensor:
        """`(R readout) * gates`."""
        return (residuals @ self.readout).mul_(self.gates)

    def dense(self) -> torch.Tensor:
        """Every entry."""
        return self.gates[:, None, :] * self.readout


@dataclass(frozen=True)
class DenseSignals:
    """Signals of deeper hidden layers, entry by entry: `[sample, output, fan_out]`."""

    entries: torch.Tensor

    def trace_gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """One product over outputs and units together."""
        flat = self.entries.flatten(1)
        return flat[rows] @ flat[columns].T

    def contract(self, residuals: torch.Tensor) -> torch.Tensor:
        """A batched product over the samples."""
        by_sample = residuals.transpose(0, 1).contiguous()
        return torch.bmm(by_sample, self.entries).transpose(0, 1)

    def dense(self) -> torch.Tensor:
        """The entries."""
        return self.entries


def _signals(
    network: Network, params: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> list[Signals]:
    """Backpropagates from the outputs to every layer; returns one `Signals` a layer, first to last."""
    weights = [weight for weight, _ in network.weights_and_biases(aligned(params))]
    outputs = network.widths[-1]
    found: list[Signals] = [UnitSignals(outputs, inputs[0])]
    for weight, above in zip(weights[:0:-1], reversed(inputs[1:]), strict=True):
        gates = (above > 0).to(above.dtype)
        if isinstance(found[0], UnitSignals):
            found.insert(0, GatedSignals(gates, aligned(weight)))
        else:
            passed = found[0].dense() @ aligned(weight)
            found.insert(0, DenseSignals(passed.mul_(gates[:, None, :])))
    return found


# ------------------------------------------------------------------------------------- the Jacobian


class FactoredJacobian:
    """The exact Jacobian of an MLP by layers: inputs of each layer and backpropagated signals."""

    def __init__(
        self,
        network: Network,
        params: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        levels: Levels | None = None,
    ) -> None:
        """Builds the Jacobian at `params` from a forward pass there.

        Args:
            network: the network.
            params: `[P]`, the point of linearisation.
            inputs: input of each layer, `[sample, fan_in]`, as `Network.activations` keeps them.
            levels: on which the network's own inputs lie, if they do.

        Raises:
            ValueError: if the inputs do not fit the network's layers.
        """
        got = tuple(x.shape[1] for x in inputs)
        if got != network.widths[:-1] or len({x.shape[0] for x in inputs}) != 1:
            raise ValueError(f"expected layer inputs of widths {network.widths[:-1]}, got {got}")
        self.network = network
        self.inputs = [aligned(x) for x in inputs]
        self.signals = _signals(network, params, self.inputs)
        self._levels = levels

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`, the sum over layers."""
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

    def _entries(self, index: int, start: int, stop: int) -> torch.Tensor:
        """Entries `start..stop` of tensor `index` of the layout (even: a weight, odd: a bias)."""
        layer_inputs, signals = self.inputs[index // 2], self.signals[index // 2].dense()
        if index % 2:
            return signals[:, :, start:stop]
        fan_in = layer_inputs.shape[1]
        first, last = start // fan_in, -(-stop // fan_in)
        rows = signals[:, :, first:last, None] * layer_inputs[:, None, None, :]
        return rows.flatten(2)[:, :, start - first * fan_in : stop - first * fan_in]


class DenseJacobian:
    """Entries of a Jacobian, `[sample, output, param]`; all parameters or a range of them.

    Sums over ranges add up: the trace-Gram of the whole is the sum of those of its ranges, the
    transposed product their concatenation.
    """

    def __init__(self, entries: torch.Tensor) -> None:
        """Wraps `entries` `[sample, output, param]`."""
        self.entries = entries

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`."""
        return symmetric_product(aligned(self.entries.flatten(1)))

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` for `residuals` `[tau, sample, output]`: `[tau, param]`."""
        return residuals.flatten(1) @ self.entries.flatten(0, 1)
