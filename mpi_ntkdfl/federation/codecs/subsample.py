"""Messages about some of a client's samples."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.federation.codecs.base import ArrayFormat, CodecSettings, RowCodec, register_codec


class SubsampleSettings(CodecSettings):
    """Settings of `Subsample`."""

    share: float = Field(gt=0, le=1)
    """Share of a client's samples about which it tells its neighbours, rounded up; drawn anew in each
    round. The client itself uses all its samples.
    """


class Subsample(RowCodec[SubsampleSettings]):
    """Sends Jacobians as they are, but of a random part of the client's samples only."""

    Settings = SubsampleSettings
    serves = ("jacobians",)
    entrywise = True
    picks = True

    def format(self) -> dict[str, ArrayFormat]:
        """The entries."""
        return {"values": ((self.params,), self.dtype)}

    def encode_rows(self, rows: torch.Tensor, rng: np.random.Generator) -> Arrays:
        """Changes nothing."""
        return {"values": rows}

    def decode_rows(self, message: Arrays) -> torch.Tensor:
        """Changes nothing."""
        return message["values"]

    def samples(self, counts: np.ndarray) -> np.ndarray:
        """The share of `counts` `[client]`, rounded up."""
        return np.ceil(self.settings.share * counts).astype(np.int64)


register_codec("subsample", Subsample)
