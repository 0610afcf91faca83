"""What a codec is: a way to write a vector into a message, so that clients send fewer bytes.

A codec is lossy in general: the vector that a receiver decodes is close to the original vector, but not
equal to it. `federation/coding.py` uses codecs for vectors, `federation/jacobian_coding.py` for messages
about samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry
from mpi_ntkdfl.runtime.settings import Section

ArrayFormat = tuple[tuple[int, ...], torch.dtype]
"""Shape and element type of one array of a message."""

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of the tensors that a vector consists of, one after another."""


class CodecSettings(Section):
    """Base of the settings of all codecs; `name` is the name under which the codec is registered."""

    name: str = ""
    error_feedback: bool | Literal["choco"] = False
    """For weights: neighbours keep an estimate of the client's weights, and messages move the estimate,
    so what a message leaves out comes with later ones. With true a client goes on from the average of the
    estimates and remembers what it has not sent; with `choco` this stays in its weights (CHOCO-SGD).
    """
    gamma: float = Field(default=1.0, gt=0, le=1)
    """With error_feedback, the step towards the neighbours' estimates."""
    memory: float = Field(default=0.85, ge=0, le=1)
    """With `error_feedback: true`, the share of what a client has not sent that it adds to the next
    message. 1 forgets nothing, but then what is left out may grow without bound.
    """

    @model_validator(mode="after")
    def _have_estimates(self) -> CodecSettings:
        for key, used in (("gamma", bool(self.error_feedback)), ("memory", self.remembers)):
            given = getattr(self, key)
            if given != type(self).model_fields[key].default and not used:
                raise ValueError(
                    f"{key} needs error_feedback: true, got {key} {given} without it; remove {key}, or "
                    "set error_feedback: true"
                )
        return self

    @property
    def remembers(self) -> bool:
        """Whether a client keeps what it has not sent beside its weights, and not in them."""
        return self.error_feedback is True


SettingsT = TypeVar("SettingsT", bound=CodecSettings)


class Codec(ABC, Generic[SettingsT]):
    """Turns a vector into a message and back. A subclass must define `Settings` and the abstract methods.

    Attributes:
        Settings: the class of the codec's settings, a subclass of `CodecSettings`.
        serves: what it can write: `weights`, `averages`, `jacobians`.
        drops: whether a receiver learns nothing about some entries. Then weights need error feedback,
            unless clients send what has changed.
        settings: the settings of this run.
        params: number of entries of a vector.
        dtype: element type of a vector.
        shapes: shapes of the tensors of which a vector consists.
    """

    Settings: ClassVar[type[CodecSettings]]
    serves: ClassVar[tuple[str, ...]] = ("weights", "averages")
    drops: ClassVar[bool] = False

    def __init__(
        self, settings: SettingsT, params: int, dtype: torch.dtype, shapes: Shapes = ()
    ) -> None:
        """Prepares the codec for vectors of `params` entries of type `dtype`."""
        self.settings, self.params, self.dtype = settings, params, dtype
        self.shapes = shapes or ((params,),)

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
        """Bytes that a real client would send for a message; by default `most_bytes`."""
        return self.most_bytes()

    def most_bytes(self) -> int:
        """The most bytes that a message can take; by default the size of its arrays."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.format().values())

    def state(self) -> dict[str, torch.Tensor]:
        """The arrays that the codec keeps per client from round to round, as before the first round.

        An example is the error that earlier messages have left (error feedback). Checkpoints store
        these arrays, so that resumed runs continue with the same bits. The default keeps nothing.
        """
        return {}


class RowCodec(Codec[SettingsT]):
    """A codec without memory that writes many vectors at once. It also serves Jacobians.

    Attributes:
        entrywise: whether every entry is coded by itself, so that a vector may be cut anywhere.
        picks: whether it only chooses the samples whose Jacobians are sent.
    """

    serves: ClassVar[tuple[str, ...]] = ("weights", "averages", "jacobians")
    entrywise: ClassVar[bool] = False
    picks: ClassVar[bool] = False

    @abstractmethod
    def encode_rows(self, rows: torch.Tensor, rng: np.random.Generator) -> Arrays:
        """The messages `[row, ...]` of the vectors `rows` `[row, param]`, which must not be changed."""

    @abstractmethod
    def decode_rows(self, message: Arrays) -> torch.Tensor:
        """The vectors `[row, param]` that a receiver reads from messages `[row, ...]`."""

    def encode(
        self, vector: torch.Tensor, rng: np.random.Generator, state: Mapping[str, torch.Tensor]
    ) -> Arrays:
        """The message of one vector."""
        return {name: array[0] for name, array in self.encode_rows(vector[None], rng).items()}

    def decode(self, message: Arrays) -> torch.Tensor:
        """The vector of one message."""
        return self.decode_rows({name: array[None] for name, array in message.items()})[0]

    def samples(self, counts: np.ndarray) -> np.ndarray:
        """Of how many samples a client with `counts` of them sends Jacobians; by default of all."""
        return counts


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
