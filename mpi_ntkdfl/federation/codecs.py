"""Codecs: ways to write a vector into a message, so that clients send fewer bytes.

A codec is lossy in general: the vector that a receiver decodes is close to the original vector, but not
equal to it. Methods pass a `Coding` (a codec with the state of a rank's clients) to `Exchange.share` or
`Exchange.average`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field as Bounded
from pydantic import SerializeAsAny, field_validator

from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry
from mpi_ntkdfl.runtime.settings import Section

ArrayFormat = tuple[tuple[int, ...], torch.dtype]
"""Shape and element type of one array of a message."""


class CodecSettings(Section):
    """Base of the settings of all codecs; `name` is the name under which the codec is registered."""

    name: str = ""


SettingsT = TypeVar("SettingsT", bound=CodecSettings)


class Codec(ABC, Generic[SettingsT]):
    """Turns a vector into a message and back. A subclass must define `Settings` and the abstract methods.

    Attributes:
        Settings: the class of the codec's settings, a subclass of `CodecSettings`.
        settings: the settings of this run.
        params: number of entries of a vector.
        dtype: element type of a vector.
    """

    Settings: ClassVar[type[CodecSettings]]

    def __init__(self, settings: SettingsT, params: int, dtype: torch.dtype) -> None:
        """Prepares the codec for vectors of `params` entries of type `dtype`."""
        self.settings, self.params, self.dtype = settings, params, dtype

    @abstractmethod
    def format(self) -> Mapping[str, ArrayFormat]:
        """Shape and element type of each array of a message, by name.

        They must not depend on the vector: every rank computes them to know how many bytes it receives.
        """

    @abstractmethod
    def encode(
        self, vector: torch.Tensor, rng: np.random.Generator, state: Mapping[str, torch.Tensor]
    ) -> Arrays:
        """The message of one client; called once per round.

        Args:
            vector: the vector that the client sends, `[param]`. It must not be changed.
            rng: generator for this client, round and phase; the same on any number of ranks.
            state: state of this client, with the arrays of the method `state`. Changes made in place
                are kept for the next round.

        Returns:
            Arrays as `format` describes them.
        """

    @abstractmethod
    def decode(self, message: Arrays) -> torch.Tensor:
        """The vector `[param]` that a receiver reads from a message.

        It must depend only on the message. Every receiver calls it, and the sender as well.
        """

    def protocol_bytes(self, message: Arrays) -> int:
        """Bytes that a real client would send for a message; by default the size of its arrays."""
        return sum(array.numel() * array.element_size() for array in message.values())

    def state(self) -> dict[str, torch.Tensor]:
        """The arrays that the codec keeps per client from round to round, as before the first round.

        An example is the error that earlier messages have left (error feedback). Checkpoints store
        these arrays, so that resumed runs continue with the same bits. The default keeps nothing.
        """
        return {}


CODECS: Registry[type[Codec[Any]]] = Registry("codec")
"""All codecs, by the names that configurations use."""


def register_codec(name: str, codec_class: type[Codec[Any]]) -> None:
    """Makes a codec known, so that configurations can say `codec: {weights: {name: NAME, ...}}`.

    Args:
        name: lower-case letters, digits and dashes.
        codec_class: a subclass of `Codec`.

    Raises:
        InputError: if the name is taken or ill-formed, or the class lacks what a codec needs; the
            message says what is missing.
    """
    given: object = codec_class
    if not (isinstance(given, type) and issubclass(given, Codec)):
        raise InputError(f"codec {name!r} must be a subclass of Codec, got {codec_class!r}")
    lacking = sorted(codec_class.__abstractmethods__)
    settings = getattr(codec_class, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, CodecSettings)):
        lacking.append("Settings (a subclass of CodecSettings)")
    if lacking:
        raise InputError(f"codec {name!r} ({codec_class.__name__}) lacks {', '.join(lacking)}")
    CODECS.register(name, codec_class)


class CodecChoice(Section):
    """The codec that clients use in each phase; null sends vectors as they are."""

    weights: SerializeAsAny[CodecSettings] | None = None

    @field_validator("weights", mode="before")
    @classmethod
    def _settings_of_the_codec(cls, value: Any) -> CodecSettings | None:
        if value is None or isinstance(value, CodecSettings):
            return value
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in CODECS:
            raise ValueError(CODECS.unknown(name))
        return CODECS[name].Settings.model_validate(value)


def message_format(codec: Codec[Any], phase: str) -> MessageFormat:
    """The layout of a codec's messages, which the ledger books under `phase`."""
    arrays = codec.format().items()
    return MessageFormat({name: Field(phase, shape, kind) for name, (shape, kind) in arrays})


class Coding:
    """A codec in use for the clients of a rank, together with the codec's state of each client."""

    def __init__(self, codec: Codec[Any], federation: Federation) -> None:
        """Starts with the state before the first round."""
        self._codec, self._federation = codec, federation
        self._state = {
            name: torch.stack([array] * len(federation.owned)).to(federation.device)
            for name, array in codec.state().items()
        }

    def format(self, phase: str) -> MessageFormat:
        """The layout of a message."""
        return message_format(self._codec, phase)

    def encode(self, vectors: torch.Tensor, phase: str, number: int) -> dict[int, Arrays]:
        """The messages of this rank's clients, by client id.

        Args:
            vectors: vectors of these clients, `[owned, param]`.
            phase: phase of the ledger.
            number: number of the round.

        Returns:
            Messages with one row each: arrays `[1, ...]`.
        """
        messages: dict[int, Arrays] = {}
        for row, client in enumerate(self._federation.owned):
            rng = seeds.generator(self._federation.seed, f"codec {phase}", client, number)
            state = {name: array[row] for name, array in self._state.items()}
            arrays = self._codec.encode(vectors[row], rng, state)
            messages[client] = {name: array[None] for name, array in arrays.items()}
        return messages

    def decode(self, message: Arrays) -> torch.Tensor:
        """The vector `[param]` of a message of one row."""
        return self._codec.decode({name: array[0] for name, array in message.items()})

    def protocol_bytes(self, message: Arrays) -> int:
        """Bytes that a real client would send for a message of one row."""
        return self._codec.protocol_bytes({name: array[0] for name, array in message.items()})

    def state(self) -> dict[str, torch.Tensor]:
        """The state of the codec by name: arrays `[owned, ...]`. See `Method.state`."""
        return dict(self._state)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the state that `state` returned, for the clients of this rank."""
        self._state = {name: state[name].to(array) for name, array in self._state.items()}


class Decoded(Mapping[int, torch.Tensor]):
    """Vectors `[param]` by client id, decoded when they are read, because messages need less memory."""

    def __init__(self, messages: Mapping[int, Arrays], codec: Coding) -> None:
        """Keeps the messages.

        Args:
            messages: messages with one row each, by client id.
            codec: the codec that has written them.
        """
        self._messages, self._codec = messages, codec

    def __getitem__(self, client: int) -> torch.Tensor:
        return self._codec.decode(self._messages[client])

    def __iter__(self) -> Iterator[int]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)


# ------------------------------------------------------------------------------------ quantisation


class QuantizeSettings(CodecSettings):
    """Settings of `Quantize`."""

    levels: int = Bounded(ge=2, le=256)
    """Number of values that an entry of a message can have. They are equally spaced between the
    least and the largest entry.
    """


class Quantize(Codec[QuantizeSettings]):
    """Rounds to equally spaced values between the least and the largest entry of a vector.

    A message has one byte per entry. Its protocol bytes are those of an ideal entropy code, because a
    real client would compress the codes: a few codes are much more frequent than the others.
    """

    Settings = QuantizeSettings

    def format(self) -> dict[str, ArrayFormat]:
        """One code per entry, and as the scale the lowest value and the step between two values."""
        return {"codes": ((self.params,), torch.uint8), "scale": ((2,), self.dtype)}

    def encode(
        self, vector: torch.Tensor, rng: np.random.Generator, state: Mapping[str, torch.Tensor]
    ) -> Arrays:
        """Rounds every entry to the nearest value."""
        low, high = vector.min(), vector.max()
        step = (high - low) / (self.settings.levels - 1)
        codes = torch.where(step > 0, torch.round((vector - low) / step), 0)
        return {"codes": codes.to(torch.uint8), "scale": torch.stack([low, step])}

    def decode(self, message: Arrays) -> torch.Tensor:
        """The decoded vector, in float64."""
        low, step = message["scale"].double()
        return message["codes"].double().mul_(step).add_(low)

    def protocol_bytes(self, message: Arrays) -> int:
        """The entropy of the codes times the number of codes, plus the bytes of the scale."""
        counts = np.bincount(message["codes"].cpu().numpy())
        shares = counts[counts > 0] / counts.sum()
        bits = int(counts.sum()) * -float(shares @ np.log2(shares))
        return math.ceil(bits / 8) + 2 * int(message["scale"].element_size())


register_codec("quantize", Quantize)
