"""Building blocks of settings: sections, bounded numbers and lists, and what a setting affects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

Effect = Literal["result", "rounding", "extent", "place", "nothing", "seed"]
"""What changes with a setting:

- `result`: the numbers of the run.
- `rounding`: only the last bits of the numbers.
- `extent`: how many rounds there are or how often they are measured; the rounds that two runs share
  have equal numbers.
- `place`: the setting is a path. The content at the path affects the result, not the path itself.
- `nothing`: no number of the run, for example where results are written.
- `seed`: the random numbers; runs that differ only in the seed repeat one experiment.
"""

_KEY = "affects"

T = TypeVar("T")


class Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def affects(effect: Effect, **options: Any) -> Any:
    """A pydantic `Field` that declares what the setting affects.

    A field without this declaration affects the result.

    Args:
        effect: what changes with the setting.
        **options: arguments of `Field`, such as `default=1, ge=1`.
    """
    return Field(json_schema_extra={_KEY: effect}, **options)


def declared_effect(field: FieldInfo) -> Effect:
    """The effect that the field of a section declares; `result` if it declares none."""
    extra = field.json_schema_extra
    effect: Any = extra.get(_KEY, "result") if isinstance(extra, dict) else "result"
    return effect  # type: ignore[no-any-return]


def a_list(example: str) -> BeforeValidator:
    """Refuses a value that is not a list, with a message that a user understands.

    Args:
        example: a value as it is written in a configuration, such as `[100]`.
    """

    def require(value: T) -> T:
        if not isinstance(value, list | tuple):
            raise ValueError(f"expected a list such as {example}")
        return value

    return BeforeValidator(require)


def readable_by(parse: Callable[[Any], float], most: float, expected: str) -> BeforeValidator:
    """Refuses a number or text that `parse` does not read as a number above 0 and at most `most`.

    The value itself stays as the user wrote it.

    Args:
        parse: returns the number that a value stands for, or 0 if it cannot read the value.
        most: the largest number allowed.
        expected: what the user should have written, for the message.
    """

    def require(value: T) -> T:
        wrong = isinstance(value, bool) or not isinstance(value, int | float | str | None)
        if value is not None and (wrong or not 0 < parse(value) <= most):
            raise ValueError(f"expected {expected}")
        return value

    return BeforeValidator(require)
