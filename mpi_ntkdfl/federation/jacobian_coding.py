"""Codecs in messages about samples: each sample's arrays are coded by themselves.

The arrays of the phase `jacobians` are coded; outputs and labels travel as they are. A client's own
Jacobian is not coded, because it does not travel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.federation.codecs import CODECS, CodecSettings, RowCodec
from mpi_ntkdfl.runtime import seeds

Pair = tuple[int, int]
"""(i, j) for a message from client j to client i."""


def require_fit(settings: CodecSettings, jacobian: str) -> None:
    """Refuses a codec for a form in which Jacobians travel, if it cannot write this form.

    Raises:
        ValueError: with the rule, what was given, and the way out.
    """
    codec = cast(type[RowCodec[CodecSettings]], CODECS[settings.name])
    if jacobian == "inputs" and not codec.picks:
        raise ValueError(
            f"codec.jacobians: with jacobian=inputs raw samples travel, which only a codec that chooses "
            f"among samples can write, got {settings.name}; take another jacobian, or {_named('picks')}"
        )
    if jacobian == "dense" and not codec.entrywise:
        raise ValueError(
            f"codec.jacobians: dense Jacobians travel in slices, so every entry must be coded by itself, "
            f"got {settings.name}; take another jacobian, or {_named('entrywise')}"
        )


def _named(trait: str) -> str:
    """The codecs that have a trait, for messages."""
    return " or ".join(name for name, codec in CODECS.items() if getattr(codec, trait, False))


class JacobianCoding:
    """The codec of messages about samples.

    Attributes:
        number: number of the current round, which decides what is drawn.
        exact: whether the arrays that are sent are the original ones.
    """

    def __init__(self, settings: CodecSettings, seed: int) -> None:
        """Prepares the codec for a run with this seed; `settings` are those of a `RowCodec`."""
        self._settings, self._seed, self.number = settings, seed, 0
        self.exact = self._codec(Field("jacobians", (1,), torch.float32)).picks

    def _codec(self, field: Field) -> RowCodec[CodecSettings]:
        params = math.prod(field.trailing)
        made = CODECS[self._settings.name](self._settings, params, field.dtype, (field.trailing,))
        return cast(RowCodec[CodecSettings], made)

    def _coded(self, form: MessageFormat) -> dict[str, RowCodec[CodecSettings]]:
        """The codec of each array that is coded."""
        return {
            name: self._codec(field)
            for name, field in form.fields.items()
            if field.phase == "jacobians" and field.dtype.is_floating_point
        }

    def form(self, form: MessageFormat) -> MessageFormat:
        """The layout of the coded message; protocol bytes are those of codes of equal length."""
        codecs = self._coded(form)
        fields: dict[str, Field] = {}
        for name, field in form.fields.items():
            if name not in codecs:
                fields[name] = field
                continue
            most = codecs[name].most_bytes()
            for part, (shape, dtype) in codecs[name].format().items():
                fields[f"{name} {part}"] = Field(field.phase, shape, dtype, most)
                most = 0
        return MessageFormat(fields)

    def rows(self, sizes: np.ndarray) -> np.ndarray:
        """Of how many samples each client sends messages, `[client]`, given how many it has."""
        codec = self._codec(Field("jacobians", (1,), torch.float32))
        return codec.samples(sizes)

    def picked(self, client: int, samples: int) -> torch.Tensor | None:
        """Places of the samples about which a client sends messages in this round; None for all."""
        count = int(self.rows(np.array([samples]))[0])
        if count == samples:
            return None
        rng = seeds.generator(self._seed, "codec samples", client, self.number)
        return torch.from_numpy(np.sort(rng.choice(samples, count, replace=False)))

    def sending(
        self, form: MessageFormat, make: Callable[[Pair], Arrays]
    ) -> Callable[[Pair], Arrays]:
        """`make` with coded messages; a client's message to itself, which does not travel, is plain."""

        def made(pair: Pair) -> Arrays:
            arrays = make(pair)
            return arrays if pair[0] == pair[1] else self.encode(form, pair, arrays)

        return made

    def encode(self, form: MessageFormat, pair: Pair, arrays: Arrays) -> Arrays:
        """The coded message of `pair`, given the message `arrays` of the layout `form`."""
        to, sender = pair
        picked = self.picked(sender, len(next(iter(arrays.values()))))
        codecs, coded = self._coded(form), dict[str, torch.Tensor]()
        for name in form.fields:
            array = arrays[name] if picked is None else arrays[name][picked.to(arrays[name].device)]
            if name not in codecs:
                coded[name] = array
                continue
            purpose = f"codec jacobians {name}"
            rng = seeds.generator(self._seed, purpose, sender, self.number, to)
            parts = codecs[name].encode_rows(array.flatten(1), rng)
            coded |= {f"{name} {part}": each for part, each in parts.items()}
        return coded

    def decode(self, form: MessageFormat, message: Arrays) -> Arrays:
        """The message of the layout `form` that a receiver reads from a coded one."""
        codecs, arrays = self._coded(form), dict[str, torch.Tensor]()
        for name, field in form.fields.items():
            if name not in codecs:
                arrays[name] = message[name]
                continue
            parts = {part: message[f"{name} {part}"] for part in codecs[name].format()}
            rows = codecs[name].decode_rows(parts).to(field.dtype)
            arrays[name] = rows.view(len(rows), *field.trailing)
        return arrays
