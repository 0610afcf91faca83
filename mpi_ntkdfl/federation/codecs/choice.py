"""Which codec writes which messages: the section `codec` of a method, and what it may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SerializeAsAny, field_validator, model_serializer

from mpi_ntkdfl.federation.codecs.base import CODECS, CodecSettings
from mpi_ntkdfl.runtime.settings import Section


class CodecChoice(Section):
    """The codec of each kind of message; null sends messages as they are."""

    weights: SerializeAsAny[CodecSettings] | None = None
    averages: SerializeAsAny[CodecSettings] | None = None
    jacobians: SerializeAsAny[CodecSettings] | None = None

    @field_validator("weights", "averages", "jacobians", mode="before")
    @classmethod
    def _settings_of_the_codec(cls, value: Any) -> CodecSettings | None:
        if value is None or isinstance(value, CodecSettings):
            return value
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in CODECS:
            raise ValueError(CODECS.unknown(name))
        return CODECS[name].Settings.model_validate(value)

    @model_serializer(mode="plain")
    def _what_was_chosen(self) -> dict[str, Any]:
        """Names and the settings that are not defaults, so that labels of runs stay short."""
        return {
            phase: {"name": codec.name, **codec.model_dump(mode="json", exclude_defaults=True)}
            for phase, codec in self.chosen.items()
        }

    @property
    def chosen(self) -> dict[str, CodecSettings]:
        """The settings of the codecs that are not null, by kind of message."""
        pairs = ((phase, getattr(self, phase)) for phase in type(self).model_fields)
        return {phase: settings for phase, settings in pairs if settings is not None}

    def require_sense(self, sends: tuple[str, ...], feedback: bool, changes: bool) -> None:
        """Refuses codecs that make no sense for the messages of a method.

        Args:
            sends: kinds of messages that the method sends.
            feedback: whether its weights can have error feedback.
            changes: whether its clients send what the round has changed in their weights.

        Raises:
            ValueError: with the rule, what was given, and the way out.
        """
        for phase, settings in self.chosen.items():
            codec, where = CODECS[settings.name], f"codec.{phase}"
            if phase not in sends:
                raise ValueError(
                    f"{where} needs a method that sends {phase}; this one sends {', '.join(sends)}; "
                    f"remove {where}"
                )
            if phase not in codec.serves:
                able = ", ".join(name for name, each in CODECS.items() if phase in each.serves)
                raise ValueError(
                    f"{where} needs a codec for {phase}, got {settings.name}, which is for "
                    f"{' and '.join(codec.serves)}; take one of {able}"
                )
            given = settings.error_feedback
            if given and phase != "weights":
                raise ValueError(
                    f"error_feedback is for codec.weights, got it in {where}; remove it"
                )
            if given and not feedback:
                raise ValueError(f"{where}: this method has no error_feedback; remove it")
            if phase == "weights" and codec.drops and not given and not changes:
                way = "error_feedback: true" if feedback else "another codec"
                raise ValueError(
                    f"{where}: {settings.name} leaves entries out, and this method sends whole weights; "
                    f"set {way}"
                )
