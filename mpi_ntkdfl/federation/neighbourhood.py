"""The stacked samples that several clients sent to one receiver, with their Jacobian as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.model.jacobian import DirectedOperator, Operator
from mpi_ntkdfl.ntk.kernel import estimated_kernel, trace_kernel


class Neighbourhood(Protocol):
    """What a client received from its closed neighbourhood, or a server from the participants.

    Samples are in client-id order. `kernel` and `transposed_product` may be called once each, in this
    order.

    Attributes:
        client: id of the receiver; a server has the id after the last client.
        outputs: outputs of the network on all N samples at the point of linearisation,
            `[sample, output]`.
        labels: `[sample]` int64.
        inputs: raw inputs `[sample, *shape]`, or None if the method did not ask for them.
        held: to which of the N samples `inputs` belong.
    """

    client: int
    outputs: torch.Tensor
    labels: torch.Tensor
    inputs: torch.Tensor | None
    held: slice

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` of `residuals` `[tau, sample, output]`: `[tau, param]`."""


def stacked(parts: Sequence[Arrays], name: str) -> torch.Tensor:
    """The arrays `name` of all `parts`, each `[sample, ...]`, concatenated along the samples."""
    return torch.cat([part[name] for part in parts])


class HeldNeighbourhood:
    """A neighbourhood whose Jacobian is an operator in memory. See `Neighbourhood`."""

    held = slice(None)

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
        self._directions: torch.Tensor | None = None

    def estimate_kernel(self, directions: torch.Tensor) -> None:
        """Lets `kernel` use only these `directions` `[direction, output]` of the outputs."""
        self._directions = directions

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""
        if self._directions is not None:
            # Settings allow this only for networks whose Jacobians can do it.
            return estimated_kernel(cast(DirectedOperator, self._jacobian), self._directions)
        return trace_kernel(self._jacobian, self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c`, `[tau, param]`."""
        return self._jacobian.transposed_product(residuals)
