"""Numbers of 16 bits."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.federation.codecs.base import ArrayFormat, CodecSettings, RowCodec, register_codec


class _Half(RowCodec[CodecSettings]):
    """Sends every entry as a number of a shorter type, 2 bytes each."""

    Settings = CodecSettings
    entrywise = True
    short: ClassVar[torch.dtype]

    def format(self) -> dict[str, ArrayFormat]:
        """The rounded entries."""
        return {"values": ((self.params,), self.short)}

    def encode_rows(self, rows: torch.Tensor, rng: np.random.Generator) -> Arrays:
        """Rounds every entry; those beyond the type's range take its largest number."""
        most = torch.finfo(self.short).max
        return {"values": rows.clamp(-most, most).to(self.short)}

    def decode_rows(self, message: Arrays) -> torch.Tensor:
        """The entries in the type of the vectors."""
        return message["values"].to(self.dtype)


class Float16(_Half):
    """IEEE's half precision: 11 significant bits, at most 65,504."""

    short = torch.float16


class Bfloat16(_Half):
    """The upper half of a float32: 8 significant bits, the range of float32."""

    short = torch.bfloat16


register_codec("float16", Float16)
register_codec("bfloat16", Bfloat16)
