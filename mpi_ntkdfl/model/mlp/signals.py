"""Backpropagated signals of the layers of a multilayer perceptron, each in its cheapest exact form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from mpi_ntkdfl.model.mlp.stack import Stack
from mpi_ntkdfl.model.params import aligned


class Signals(Protocol):
    """`s_lc = df_c / dz_l` of one layer for all samples, `[sample, output, fan_out]`, in some form."""

    def trace_gram(self, rows: slice, columns: slice) -> torch.Tensor | int:
        """A block of `sum_c s_c s_c^T` `[sample, sample]`, or one number if all entries are equal."""

    def contract(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c R_c s_c` for `residuals` `[tau, sample, output]`: `[tau, sample, fan_out]`."""

    def dense(self) -> torch.Tensor:
        """All entries, `[sample, output, fan_out]`."""


@dataclass(frozen=True)
class UnitSignals:
    """Signals of the output layer. Its `z` is the output itself, so `s_c = e_c`.

    Attributes:
        outputs: number of outputs.
        like: any array `[sample, ...]`, for the number of samples, the type and the device.
    """

    outputs: int
    like: torch.Tensor

    def trace_gram(self, rows: slice, columns: slice) -> int:
        """The number of outputs, which all entries are equal to."""
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
    """Signals of the last hidden layer: the output weights of the units whose ReLU is open.

    Attributes:
        gates: 1 for an open ReLU, 0 for a closed one, `[sample, fan_out]`.
        readout: output weights, `[output, fan_out]`.
    """

    gates: torch.Tensor
    readout: torch.Tensor

    @cached_property
    def _scaled(self) -> torch.Tensor:
        return self.gates * self.readout.square().sum(0).sqrt()

    def trace_gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """`gates diag(sum_c readout_c^2) gates^T`: one product instead of one per output."""
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
        """One product in which the sum runs over outputs and units together."""
        flat = self.entries.flatten(1)
        return flat[rows] @ flat[columns].T

    def contract(self, residuals: torch.Tensor) -> torch.Tensor:
        """A batched product over the samples."""
        by_sample = residuals.transpose(0, 1).contiguous()
        return torch.bmm(by_sample, self.entries).transpose(0, 1)

    def dense(self) -> torch.Tensor:
        """The entries."""
        return self.entries


def backpropagated(
    stack: Stack, params: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> list[Signals]:
    """Backpropagates from the outputs to every layer; returns the `Signals` from first to last layer."""
    weights = [weight for weight, _ in stack.weights_and_biases(aligned(params))]
    outputs = stack.widths[-1]
    signals: list[Signals] = [UnitSignals(outputs, inputs[0])]
    for weight, above in zip(weights[:0:-1], reversed(inputs[1:]), strict=True):
        gates = (above > 0).to(above.dtype)
        if isinstance(signals[0], UnitSignals):
            signals.insert(0, GatedSignals(gates, aligned(weight)))
        else:
            passed = signals[0].dense() @ aligned(weight)
            signals.insert(0, DenseSignals(passed.mul_(gates[:, None, :])))
    return signals
