"""Samples that several clients sent to one place, stacked, with their Jacobian as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.model.levels import Levels
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.jacobian import FactoredJacobian
from mpi_ntkdfl.ntk.kernel import trace_kernel


class Neighbourhood(Protocol):
    """What a client's closed neighbourhood sent it, or participants a server, in client-id order.

    `kernel` and `transposed_product` may be asked for once each, in this order.

    Attributes:
        client: whose it is; a server counts as one more client.
        outputs: of the network on all N samples, where it is linearised, `[sample, output]`.
        labels: `[sample]` int64.
        inputs: raw inputs `[sample, feature]`, None unless asked for.
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
    """A neighbourhood whose factored Jacobian is in memory. See `Neighbourhood`."""

    def __init__(
        self,
        network: Network,
        client: int,
        params: torch.Tensor,
        parts: Sequence[Arrays],
        levels: Levels | None,
    ) -> None:
        self.client = client
        self.outputs = stacked(parts, "outputs")
        self.labels = stacked(parts, "labels").long()
        layers = [stacked(parts, f"layer{index}") for index in range(network.layers)]
        self.inputs: torch.Tensor | None = layers[0]
        self._jacobian = FactoredJacobian(network, params, layers, levels)

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""
        return trace_kernel(self._jacobian, self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c`, `[tau, param]`."""
        return self._jacobian.transposed_product(residuals)
