"""Quantisation: every entry of a vector takes one of a few equally spaced values."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.federation.codecs.base import ArrayFormat, CodecSettings, RowCodec, register_codec


class QuantizeSettings(CodecSettings):
    """Settings of `Quantize`."""

    name: str = "quantize"
    levels: int = Field(ge=2, le=256)
    """Number of values that an entry of a message can have. They are equally spaced between the
    least and the largest entry.
    """
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """Whether an entry takes the nearest value, or one of its two neighbours at random, so that the
    expected value is the entry.
    """
    scales: Literal["vector", "tensor", "row"] = "vector"
    """What has a least and a largest entry of its own: the whole vector, each tensor of parameters, or
    each row of a tensor, such as the weights into one unit.
    """


class Quantize(RowCodec[QuantizeSettings]):
    """Rounds to equally spaced values between the least and the largest entry.

    A message has one byte per entry. The protocol bytes of a vector are those of an ideal entropy code,
    because a real client would compress the codes: a few codes are much more frequent than the others.
    """

    Settings = QuantizeSettings

    def format(self) -> dict[str, ArrayFormat]:
        """One code per entry, and per scale the lowest value and the step between two values."""
        scales = (len(self._lengths), 2), self.dtype
        return {"codes": ((self.params,), torch.uint8), "scale": scales}

    def encode_rows(self, rows: torch.Tensor, rng: np.random.Generator) -> Arrays:
        """Rounds every entry."""
        low, high = self._ends(rows)
        step = (high - low) / (self.settings.levels - 1)
        steps = self._spread(step)
        places = (rows - self._spread(low)) / steps
        if self.settings.rounding == "stochastic":
            chances = torch.from_numpy(rng.random(tuple(rows.shape))).to(rows)
            places = places.add_(chances).floor_().clamp_(max=self.settings.levels - 1)
        codes = torch.where(steps > 0, places.round_(), 0)
        return {"codes": codes.to(torch.uint8), "scale": torch.stack([low, step], dim=-1)}

    def decode_rows(self, message: Arrays) -> torch.Tensor:
        """The decoded vectors, in float64."""
        low, step = message["scale"].double().unbind(-1)
        return message["codes"].double().mul_(self._spread(step)).add_(self._spread(low))

    def protocol_bytes(self, message: Arrays) -> int:
        """The entropy of the codes times the number of codes, plus the bytes of the scales."""
        counts = np.bincount(message["codes"].cpu().numpy())
        shares = counts[counts > 0] / counts.sum()
        bits = int(counts.sum()) * -float(shares @ np.log2(shares))
        return math.ceil(bits / 8) + self._scale_bytes

    def most_bytes(self) -> int:
        """Codes of equal length, plus the bytes of the scales."""
        return -(-self.params * (self.settings.levels - 1).bit_length() // 8) + self._scale_bytes

    @property
    def _scale_bytes(self) -> int:
        return 2 * len(self._lengths) * self.dtype.itemsize

    @cached_property
    def _lengths(self) -> list[int]:
        """Number of entries that share a scale, for each scale."""
        if self.settings.scales == "vector":
            return [self.params]
        if self.settings.scales == "tensor":
            return [math.prod(shape) for shape in self.shapes]
        rows = [(shape[:1] if len(shape) > 1 else (1,), shape) for shape in self.shapes]
        return [math.prod(shape) // count for (count,), shape in rows for _ in range(count)]

    @cached_property
    def _scale_of(self) -> torch.Tensor:
        """The scale to which each entry belongs, `[param]`."""
        lengths = torch.tensor(self._lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    def _ends(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the largest entry of each scale, `[row, scale]`."""
        if len(self._lengths) == 1:
            return rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        places = self._scale_of.to(rows.device).expand(len(rows), -1)
        like = rows.new_zeros(len(rows), len(self._lengths))
        least = like.scatter_reduce(1, places, rows, "amin", include_self=False)
        return least, like.scatter_reduce(1, places, rows, "amax", include_self=False)

    def _spread(self, scales: torch.Tensor) -> torch.Tensor:
        """`[row, scale]` numbers for each entry, `[row, param]` or a shape that broadcasts to it."""
        return scales if len(self._lengths) == 1 else scales[:, self._scale_of.to(scales.device)]


register_codec("quantize", Quantize)
