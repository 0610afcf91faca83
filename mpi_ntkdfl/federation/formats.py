"""Layouts of the messages in which clients send their samples or Jacobians."""

from __future__ import annotations

import torch

from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.model.network import FactoredForm, Network
from mpi_ntkdfl.runtime.errors import InputError


def samples_format(network: Network, dtype: torch.dtype) -> MessageFormat:
    """Raw inputs of type `dtype`, which is uint8 where the data set stores bytes, and labels."""
    return MessageFormat({**_inputs(network, dtype), **_labels()})


def factored_format(network: Network, dtype: torch.dtype) -> MessageFormat:
    """The arrays of the network's factored form, outputs and labels.

    Raises:
        InputError: if the network has no factored form.
    """
    shapes = required_form(network).shapes
    arrays = {name: Field("jacobians", shape, dtype) for name, shape in shapes.items()}
    return MessageFormat({**arrays, **_results(network, dtype)})


def required_form(network: Network) -> FactoredForm:
    """The network's factored form.

    Raises:
        InputError: if it has none.
    """
    if network.factored is None:
        raise InputError(
            "algorithm.jacobian=factored needs a network with a factored form of its Jacobian, "
            f"which {network.describe()} does not have; set algorithm.jacobian=inputs"
        )
    return network.factored


def dense_heading(network: Network, dtype: torch.dtype, inputs: bool) -> MessageFormat:
    """The message before the slices of a dense Jacobian: outputs, labels, and inputs if wanted."""
    raw = _inputs(network, dtype) if inputs else {}
    return MessageFormat({**raw, **_results(network, dtype)})


def dense_entries(network: Network, dtype: torch.dtype, width: int) -> MessageFormat:
    """Entries of a dense Jacobian for `width` of its parameters."""
    return MessageFormat({"entries": Field("jacobians", (network.classes, width), dtype)})


def projected_format(network: Network, dtype: torch.dtype, columns: int) -> MessageFormat:
    """A projected Jacobian of `columns` numbers per output, outputs and labels."""
    entries = {"entries": Field("jacobians", (network.classes, columns), dtype)}
    return MessageFormat({**entries, **_results(network, dtype)})


def _inputs(network: Network, dtype: torch.dtype) -> dict[str, Field]:
    return {"inputs": Field("inputs", network.shape, dtype)}


def _labels() -> dict[str, Field]:
    return {"labels": Field("labels", (), torch.int32)}


def _results(network: Network, dtype: torch.dtype) -> dict[str, Field]:
    return {"outputs": Field("outputs", (network.classes,), dtype), **_labels()}
