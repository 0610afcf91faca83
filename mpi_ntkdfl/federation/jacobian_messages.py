"""Jacobians in one message: what a client sends, and how the receiver computes the Jacobian from it.

The receiver knows the parameters at which the Jacobian is needed. So it is enough to send the factored
form of the network, if it has one. Otherwise the samples themselves are enough: with them the receiver
can compute the Jacobian of any network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpi_ntkdfl.comm.messages import Arrays, MessageFormat
from mpi_ntkdfl.federation import raw_samples
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.formats import factored_format, required_form, samples_format
from mpi_ntkdfl.federation.neighbourhood import HeldNeighbourhood, stacked
from mpi_ntkdfl.model.network import Network


class JacobianMessage(Protocol):
    """A way to send a Jacobian."""

    def form(self, federation: Federation) -> MessageFormat:
        """Layout of the message."""

    def make(self, federation: Federation, params: torch.Tensor, source: int) -> Arrays:
        """The message of the own client `source` about its Jacobian at `params` `[param]`."""

    def receive(
        self, federation: Federation, params: torch.Tensor, client: int, parts: Sequence[Arrays]
    ) -> HeldNeighbourhood:
        """The neighbourhood of `client` at `params` `[param]` from the messages `parts`."""


@dataclass(frozen=True)
class FactoredMessage:
    """The network's factored form, outputs and labels."""

    def form(self, federation: Federation) -> MessageFormat:
        """Layout of the message.

        Raises:
            InputError: for a network without a factored form.
        """
        return factored_format(federation.network, federation.dtype)

    def make(self, federation: Federation, params: torch.Tensor, source: int) -> Arrays:
        """Computes the factored form by one forward pass."""
        samples = federation.samples[source]
        with federation.clock("jacobian"):
            arrays, outputs = required_form(federation.network).arrays(params, samples.inputs)
        return {**arrays, "outputs": outputs, "labels": samples.labels}

    def receive(
        self, federation: Federation, params: torch.Tensor, client: int, parts: Sequence[Arrays]
    ) -> HeldNeighbourhood:
        """Rebuilds the Jacobian of the stacked samples."""
        form = required_form(federation.network)
        outputs, labels = stacked(parts, "outputs"), stacked(parts, "labels").long()
        arrays = {name: stacked(parts, name) for name in form.shapes}
        jacobian = form.rebuild(params, arrays, federation.levels)
        return HeldNeighbourhood(client, outputs, labels, form.inputs(arrays), jacobian)


@dataclass(frozen=True)
class SamplesMessage:
    """Raw inputs, as bytes where the data set stores bytes, and labels."""

    def form(self, federation: Federation) -> MessageFormat:
        """Layout of the message."""
        return samples_format(federation.network, federation.travelling)

    def make(self, federation: Federation, params: torch.Tensor, source: int) -> Arrays:
        """The samples as they are."""
        return raw_samples.message(federation, source)

    def receive(
        self, federation: Federation, params: torch.Tensor, client: int, parts: Sequence[Arrays]
    ) -> HeldNeighbourhood:
        """Computes the Jacobian of the stacked samples."""
        samples = raw_samples.together(federation, parts)
        return linearised(federation, params, client, samples)


def linearised(
    federation: Federation, params: torch.Tensor, client: int, samples: Samples
) -> HeldNeighbourhood:
    """The neighbourhood of `client` at `params` `[param]`; the Jacobian of `samples` is computed here."""
    network, inputs = federation.network, samples.inputs
    form = network.factored
    if form is None:
        jacobian = network.jacobian(params, inputs)
    else:  # this way computes with levels, as `FactoredMessage` does
        arrays, _ = form.arrays(params, inputs)
        jacobian = form.rebuild(params, arrays, federation.levels)
    return HeldNeighbourhood(client, jacobian.outputs, samples.labels, inputs, jacobian)


def smallest_message(network: Network) -> JacobianMessage:
    """The factored form where the network has one, otherwise the samples."""
    return SamplesMessage() if network.factored is None else FactoredMessage()
