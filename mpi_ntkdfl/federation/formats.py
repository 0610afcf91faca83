"""Layouts of the messages that clients send about their samples."""

from __future__ import annotations

import torch

from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.model.network import Network


def samples_format(network: Network, dtype: torch.dtype) -> MessageFormat:
    """Raw inputs and labels."""
    return MessageFormat({**_inputs(network, dtype), **_labels()})


def factored_format(network: Network, dtype: torch.dtype) -> MessageFormat:
    """Layer inputs, outputs and labels."""
    layers = {
        f"layer{index}": Field("jacobians", (width,), dtype)
        for index, width in enumerate(network.widths[:-1])
    }
    return MessageFormat({**layers, **_results(network, dtype)})


def dense_heading(network: Network, dtype: torch.dtype, inputs: bool) -> MessageFormat:
    """What goes ahead of the slices of a dense Jacobian: outputs, labels, and inputs if wanted."""
    raw = _inputs(network, dtype) if inputs else {}
    return MessageFormat({**raw, **_results(network, dtype)})


def _inputs(network: Network, dtype: torch.dtype) -> dict[str, Field]:
    return {"inputs": Field("inputs", (network.widths[0],), dtype)}


def _labels() -> dict[str, Field]:
    return {"labels": Field("labels", (), torch.int32)}


def _results(network: Network, dtype: torch.dtype) -> dict[str, Field]:
    return {"outputs": Field("outputs", (network.widths[-1],), dtype), **_labels()}


def dense_entries(network: Network, dtype: torch.dtype, width: int) -> MessageFormat:
    """Entries of a dense Jacobian for `width` of its parameters."""
    return MessageFormat({"entries": Field("jacobians", (network.widths[-1], width), dtype)})
