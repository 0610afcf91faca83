"""Averages over the neighbours of what does not travel as plain vectors: rounded changes, masked weights.

Like `Exchange.average`, clients combine in client-id order in float64.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.federation.exchange import Exchange


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
    codes = torch.where(step > 0, torch.round((vector - low) / step), 0)
    return {"codes": codes.to(torch.uint8)[None], "scale": torch.stack([low, step])[None]}


def dequantised(message: Arrays) -> torch.Tensor:
    """The values of a quantised message, `[param]` float64."""
    low, step = message["scale"][0].double()
    return message["codes"][0].double().mul_(step).add_(low)


def coded_bytes(codes: np.ndarray, itemsize: int) -> int:
    """Bytes of a quantised message under an ideal entropy code: entropy times entries, and the scale.

    Args:
        codes: `[param]` uint8.
        itemsize: bytes of a number of the scale.
    """
    counts = np.bincount(codes)
    shares = counts[counts > 0] / codes.size
    bits = codes.size * -float(shares @ np.log2(shares))
    return math.ceil(bits / 8) + 2 * itemsize


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
    codes = torch.cat([message["codes"] for message in own.values()]).cpu().numpy()
    itemsize = vectors.dtype.itemsize
    coded[f.owned.start : f.owned.stop] = [coded_bytes(row, itemsize) for row in codes]
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
    whole = mask.new_zeros(-(-len(mask) // 8), 8, dtype=torch.uint8)
    whole.view(-1)[: len(mask)] = mask
    packed, *others = whole.unbind(1)
    for column in others:
        packed = packed * 2 + column
    return packed


def _unmasked(message: Arrays, params: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector `[param]` of a masked message, 0 where nothing is kept, and its mask `[param]` bool."""
    values, bits = message["values"][0], message["mask"][0]
    mask = (bits[:, None] >> _shifts(bits)).bitwise_and_(1).flatten()[:params].bool()
    return values.new_zeros(params).masked_scatter_(mask, values), mask


def _shifts(like: torch.Tensor) -> torch.Tensor:
    """Places of a byte's bits, the highest first, on the device of `like`."""
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=like.device)
