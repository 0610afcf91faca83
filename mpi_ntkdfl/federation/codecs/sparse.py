"""Sparse messages: only some entries of a vector are sent; a receiver takes the others as 0."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.federation.codecs.base import ArrayFormat, CodecSettings, RowCodec, register_codec
from mpi_ntkdfl.runtime import seeds


class SparseSettings(CodecSettings):
    """Settings of codecs that send some entries."""

    share: float = Field(gt=0, le=1)
    """Share of the entries that are sent, at least one entry."""


class _Sparse(RowCodec[SparseSettings]):
    """What both kinds share."""

    Settings = SparseSettings
    serves = ("weights", "jacobians")
    drops = True

    @property
    def kept(self) -> int:
        """Number of entries that are sent."""
        return max(1, round(self.settings.share * self.params))


class TopK(_Sparse):
    """Sends the entries of largest absolute value, with their places.

    The protocol bytes of the places are those of the shorter of two encodings: a number of
    `ceil(log2(entries))` bits per entry that is sent, or one bit per entry of the vector.
    """

    def format(self) -> dict[str, ArrayFormat]:
        """Values and places, in ascending order of places."""
        return {"values": ((self.kept,), self.dtype), "places": ((self.kept,), torch.int32)}

    def encode_rows(self, rows: torch.Tensor, rng: np.random.Generator) -> Arrays:
        """Chooses the entries."""
        places = rows.abs().topk(self.kept, dim=1, sorted=False).indices.sort(1).values
        return {"values": rows.gather(1, places), "places": places.to(torch.int32)}

    def decode_rows(self, message: Arrays) -> torch.Tensor:
        """The vectors with 0 elsewhere."""
        values = message["values"]
        whole = values.new_zeros(len(values), self.params)
        return whole.scatter_(1, message["places"].long(), values)

    def most_bytes(self) -> int:
        """Values and places; all messages have this length."""
        bits = min(self.kept * (self.params - 1).bit_length(), self.params)
        return self.kept * self.dtype.itemsize + -(-bits // 8)


class RandomK(_Sparse):
    """Sends entries drawn at random.

    The places follow from a key, which real clients would derive from seed, round and sender. So the
    protocol bytes are those of the values.
    """

    def format(self) -> dict[str, ArrayFormat]:
        """Values in ascending order of places, and the key of the places."""
        return {"values": ((self.kept,), self.dtype), "key": ((), torch.int64)}

    def encode_rows(self, rows: torch.Tensor, rng: np.random.Generator) -> Arrays:
        """Draws the same places for all vectors."""
        key = int(rng.integers(2**62))
        places = self._places(key).to(rows.device)
        return {"values": rows[:, places], "key": torch.full((len(rows),), key).to(rows.device)}

    def decode_rows(self, message: Arrays) -> torch.Tensor:
        """The vectors with 0 elsewhere."""
        values = message["values"]
        whole = values.new_zeros(len(values), self.params)
        if len(values):
            whole[:, self._places(int(message["key"][0])).to(values.device)] = values
        return whole

    def most_bytes(self) -> int:
        """The values; all messages have this length."""
        return self.kept * self.dtype.itemsize

    def _places(self, key: int) -> torch.Tensor:
        rng = seeds.generator(key, "places of entries")
        return torch.from_numpy(np.sort(rng.choice(self.params, self.kept, replace=False)))


register_codec("top-k", TopK)
register_codec("random-k", RandomK)
