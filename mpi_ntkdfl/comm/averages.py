"""Averages over the neighbours of what does not travel as plain vectors: rounded changes, masked weights.

Like `Exchange.average`, clients combine in client-id order in float64.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.exchange import Exchange
from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.comm.neighbourhood import Arrays


def quantised_format(params: int, dtype: torch.dtype) -> MessageFormat:
    """A code for every entry, and the lowest value and the step that codes count from and in."""
    return MessageFormat(
        {
            "codes": Field("weights", (params,), torch.uint8),
            "scale": Field("weights", (2,), dtype),
        }
    )


def quantised(vector: torch.Tensor, levels: int) -> Arrays:
    """Rounds `vector` `[param]` to `levels` equally spaced values from its least to its largest entry.

    Returns:
        The message: codes `[1, param]` uint8, scale `[1, 2]`.
    """
    low, high = vector.min(), vector.max()
    step = (high - low) / (levels - 1)
    codes = torch.round((vector - low) / step) if step > 0 else torch.zeros_like(vector)
    return {"codes": codes.to(torch.uint8)[None], "scale": torch.stack([low, step])[None]}


def dequantised(message: Arrays) -> torch.Tensor:
    """The values of a quantised message, `[param]` float64."""
    low, step = message["scale"][0].double()
    return message["codes"][0].double().mul_(step).add_(low)


def coded_bytes(message: Arrays) -> int:
    """Bytes of a quantised message under an ideal entropy code: entropy times entries, and the scale."""
    codes = message["codes"]
    counts = np.bincount(codes.flatten().cpu().numpy())
    shares = counts[counts > 0] / codes.numel()
    bits = codes.numel() * -float(shares @ np.log2(shares))
    return math.ceil(bits / 8) + message["scale"].numel() * message["scale"].dtype.itemsize


def quantised_average(
    exchange: Exchange, vectors: torch.Tensor, kind: Literal["plain", "samples"], levels: int
) -> torch.Tensor:
    """Each client averages its own and its neighbours' vectors, all of them rounded.

    Args:
        exchange: the round's messages.
        vectors: `[owned, param]`.
        kind: equal weights, or in proportion to the clients' samples.
        levels: values an entry can take, at most 256.

    Returns:
        The averages of this rank's clients, `[owned, param]`.
    """
    f, graph = exchange.federation, exchange.graph
    form = quantised_format(vectors.shape[1], vectors.dtype)
    own = {c: quantised(v, levels) for c, v in zip(f.owned, vectors, strict=True)}
    coded = np.zeros(graph.clients, dtype=np.int64)
    coded[f.owned.start : f.owned.stop] = [coded_bytes(message) for message in own.values()]
    exchange.book_sent("weights", f.world.total(coded))
    known = exchange.share_messages(form, own)
    return exchange.mixed(lambda client: dequantised(known[client]), kind, vectors)


def masked_format(kept: int, params: int, dtype: torch.dtype) -> MessageFormat:
    """The entries a mask keeps, and the mask, a bit for every parameter."""
    return MessageFormat(
        {
            "values": Field("weights", (kept,), dtype),
            "mask": Field("weights", (-(-params // 8),), torch.uint8),
        }
    )


def masked_average(exchange: Exchange, vectors: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Each client averages every entry of its own mask over the closed neighbours that keep it too.

    Args:
        exchange: the round's messages.
        vectors: `[owned, param]`.
        masks: which entries each client keeps, `[owned, param]` bool; equally many for every client.

    Returns:
        The averages of this rank's clients, 0 outside their own masks, `[owned, param]`.
    """
    f, graph, params = exchange.federation, exchange.graph, vectors.shape[1]
    form = masked_format(int(masks[0].sum()), params, vectors.dtype)
    own = {
        client: {"values": vector[mask][None], "mask": _packed(mask)[None]}
        for client, vector, mask in zip(f.owned, vectors, masks, strict=True)
    }
    exchange.book_vectors(form)
    shared = exchange.share_messages(form, own)
    averages = torch.empty_like(vectors)
    with f.clock("update"):
        known = {client: _unmasked(message, params) for client, message in shared.items()}
        for row, client in enumerate(f.owned):
            total = torch.zeros_like(vectors[0], dtype=torch.float64)
            count = torch.zeros_like(total)
            for other in graph.closed(client).tolist():
                vector, mask = known[other]
                total.add_(vector)
                count.add_(mask)
            averages[row] = torch.where(masks[row], total / count.clamp_(min=1), 0)
    return averages


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Bits `[ceil(param / 8)]` uint8 of a `mask` `[param]`."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy())).to(mask.device)


def _unmasked(message: Arrays, params: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector `[param]` of a masked message, 0 where nothing is kept, and its mask `[param]` bool."""
    values, bits = message["values"][0], message["mask"][0]
    mask = torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=params).view(bool))
    vector = values.new_zeros(params)
    vector[mask.to(vector.device)] = values
    return vector, mask.to(vector.device)
