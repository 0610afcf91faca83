"""Samples that several clients sent to one place, stacked, with their Jacobian as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.model.jacobian import Operator
from mpi_ntkdfl.ntk.kernel import trace_kernel


class Neighbourhood(Protocol):
    """What a client's closed neighbourhood sent it, or participants a server, in client-id order.

    `kernel` and `transposed_product` may be asked for once each, in this order.

    Attributes:
        client: whose it is; a server counts as one more client.
        outputs: of the network on all N samples, where it is linearised, `[sample, output]`.
        labels: `[sample]` int64.
        inputs: raw inputs `[sample, *shape]`, None unless asked for.
    """

    client: int
    outputs: torch.Tensor
    labels: torch.Tensor
    inputs: torch.Tensor | None

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""
        ...

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` of `residuals` `[tau, sample, output]`: `[tau, param]`."""
        ...


def stacked(parts: Sequence[Arrays], name: str) -> torch.Tensor:
    """The arrays `name` of all `parts`, `[sample, ...]` each, one after another."""
    return torch.cat([part[name] for part in parts])


class HeldNeighbourhood:
    """A neighbourhood whose Jacobian is in memory, as an operator. See `Neighbourhood`."""

    def __init__(
        self,
        client: int,
        outputs: torch.Tensor,
        labels: torch.Tensor,
        inputs: torch.Tensor,
        jacobian: Operator,
    ) -> None:
        self.client, self.outputs, self.labels = client, outputs, labels
        self.inputs: torch.Tensor | None = inputs
        self._jacobian = jacobian

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""
        return trace_kernel(self._jacobian, self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c`, `[tau, param]`."""
        return self._jacobian.transposed_product(residuals)
