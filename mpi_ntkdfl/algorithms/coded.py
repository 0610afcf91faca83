"""Settings of methods whose messages can be written by codecs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.codecs import CodecChoice


class CodedSettings(MethodSettings):
    """The key `codec`, and what it may say.

    Attributes:
        feedback: whether messages of weights can have error feedback.
        changes: whether clients with a codec send what the round has changed in their weights.
    """

    feedback: ClassVar[bool] = True
    changes: ClassVar[bool] = True

    codec: CodecChoice | None = None
    """How messages are written, such as `{weights: {name: quantize, levels: 16}}`. Null sends them as
    they are.
    """

    @property
    def sends(self) -> tuple[str, ...]:
        """Kinds of messages that a codec can write."""
        return ("weights",)

    @property
    def codecs(self) -> CodecChoice | None:
        """The codecs that the settings choose; None for none."""
        return self.codec

    @model_validator(mode="after")
    def _codecs_make_sense(self) -> CodedSettings:
        if self.codec is not None:
            self.codec.require_sense(self.sends, self.feedback, self.changes)
        return self
