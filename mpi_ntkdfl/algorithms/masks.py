"""Masks of DisPFL: how many entries a client keeps, and the messages with these entries."""

from __future__ import annotations

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.federation.coding import Stream, vector_format
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.runtime.errors import InputError


def kept_entries(layout: Layout, dense_ratio: float) -> dict[str, int]:
    """How many entries of each tensor a client keeps, by the Erdos-Renyi kernel.

    Densities are proportional to (fan_in + fan_out) / (fan_in fan_out) and at most 1, so that small
    layers are denser (Evci et al., "Rigging the lottery", ICML 2020). All biases are kept.

    Raises:
        InputError: if `dense_ratio` leaves no room for weights beside the biases.
    """
    kept = dict(zip(layout.shapes, layout.sizes, strict=True))
    sparse = [name for name, shape in layout.shapes.items() if len(shape) > 1]
    while sparse:
        room = dense_ratio * layout.size - sum(kept[name] for name in kept if name not in sparse)
        # Density is scale * sum(shape) / prod(shape), so entries are scale * sum(shape).
        scale = room / sum(sum(layout.shapes[name]) for name in sparse)
        entries = {name: scale * sum(layout.shapes[name]) for name in sparse}
        full = [name for name in sparse if entries[name] >= kept[name]]
        if not full:
            kept |= {name: round(count) for name, count in entries.items()}
            break
        sparse = [name for name in sparse if name not in full]
    if min(kept.values()) < 1:
        raise InputError(
            f"algorithm.dense_ratio must leave every layer a weight beside the biases, got "
            f"{dense_ratio} of {layout.size} parameters; raise it"
        )
    return kept


def masked_format(values: MessageFormat, params: int) -> MessageFormat:
    """The layout of a message: entries that a mask keeps, and the mask with one bit per parameter."""
    mask = Field("weights", (-(-params // 8),), torch.uint8)
    return MessageFormat({**values.fields, "mask": mask})


def masked_average(
    exchange: Exchange, vectors: torch.Tensor, masks: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Averages entries over those of a client's closed neighbourhood that have them.

    Args:
        exchange: the round's messages.
        vectors: `[owned, param]`.
        masks: which entries each client has and sends, `[owned, param]` bool; the same number for all
            clients.
        kept: which averages each client keeps, `[owned, param]` bool.

    Returns:
        The averages of this rank's clients, `[owned, param]`. Entries that a client does not keep, or
        that nobody in its closed neighbourhood has, are 0.
    """
    f, heard, params = exchange.federation, exchange.heard("weights"), vectors.shape[1]
    values = torch.stack([vector[mask] for vector, mask in zip(vectors, masks, strict=True)])
    stream, number = exchange.codings.next("weights"), exchange.codings.number
    if stream is None:
        form = vector_format(None, "weights", (values.shape[1:],), vectors.dtype)
        own: dict[int, Arrays] = {
            c: {"vector": v[None]} for c, v in zip(f.owned, values, strict=True)
        }
        counts = np.full(exchange.graph.clients, form.by_phase(1, travelling=False)["weights"])
    else:
        form, own, counts = stream.messages(values, number)
    packed = {c: {"mask": _packed(mask)[None]} for c, mask in zip(f.owned, masks, strict=True)}
    exchange.book_sent("weights", counts + -(-params // 8))
    form = masked_format(form, params)
    shared = exchange.share_messages(form, {c: {**own[c], **packed[c]} for c in own})
    averages = torch.empty_like(vectors)
    with f.clock("update"):
        unmasked = {c: _unmasked(message, params, stream) for c, message in shared.items()}
        for row, client in enumerate(f.owned):
            total = torch.zeros_like(vectors[0], dtype=torch.float64)
            count = torch.zeros_like(total)
            for other in heard.closed(client).tolist():
                vector, mask = unmasked[other]
                total.add_(vector)
                count.add_(mask)
            averages[row] = torch.where(kept[row], total / count.clamp_(min=1), 0)
    return averages


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Bits `[ceil(param / 8)]` uint8 of a `mask` `[param]`."""
    whole = mask.new_zeros(-(-len(mask) // 8), 8, dtype=torch.uint8)
    whole.view(-1)[: len(mask)] = mask
    packed, *others = whole.unbind(1)
    for column in others:
        packed = packed * 2 + column
    return packed


def _unmasked(
    message: Arrays, params: int, stream: Stream | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector `[param]` of a masked message, 0 where nothing is kept, and its mask `[param]` bool."""
    values = message["vector"][0] if stream is None else stream.decode(message)
    bits = message["mask"][0]
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)  # the highest bit first
    mask = (bits[:, None] >> shifts).bitwise_and_(1).flatten()[:params].bool()
    return values.new_zeros(params).masked_scatter_(mask, values), mask
