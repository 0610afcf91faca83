"""The section `environment`: links, devices, availability and waiting of a federation in simulated time.

Quantities are texts with their units, such as `50ms`, `10Mbit/s` and `20GFLOP/s`. A number without a
unit is refused, because nobody could tell bits from bytes or seconds from milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mpi_ntkdfl.runtime.settings import Section, affects
from mpi_ntkdfl.runtime.units import parse_rate, parse_speed, parse_time

MOST_SECONDS = 365 * 86400.0
"""Bound of every time in this section."""


def _with_unit(
    parse: Callable[[object], float | None], least: float, most: float, expected: str
) -> BeforeValidator:
    """Refuses what is no number with a unit, and numbers below `least` or above `most`."""

    def require(value: Any) -> Any:
        number = parse(value)
        if value is not None and (number is None or not least <= number <= most):
            raise ValueError(f"expected {expected}")
        return value

    return BeforeValidator(require)


_Latency = Annotated[
    str, _with_unit(parse_time, 0.0, 3600.0, "a time with its unit from 0ms to 1h, such as 50ms")
]
_Span = Annotated[
    str,
    _with_unit(
        parse_time, 1e-3, MOST_SECONDS, "a time with its unit from 1ms to 365d, such as 10min"
    ),
]
_RATE = _with_unit(
    parse_rate, 1.0, 1e15, "a rate with its unit from 1bit/s to 1Pbit/s, such as 10Mbit/s"
)
_Speed = Annotated[
    str,
    _with_unit(
        parse_speed,
        1.0,
        1e21,
        "a speed with its unit from 1FLOP/s to 1e6PFLOP/s, such as 20GFLOP/s",
    ),
]


def _checked(number: float | None) -> float:
    """The number of a text that was checked when it was read."""
    assert number is not None
    return number


class LinkSettings(Section):
    """Links of the clients, and of a server if the method has one."""

    latency: _Latency = "50ms"
    """Time of every message on its way, in one direction."""
    up: Annotated[str, _RATE] = "10Mbit/s"
    """Rate at which a client sends; its messages of one leg have equal parts."""
    down: Annotated[str, _RATE] = "50Mbit/s"
    """Rate at which a client receives; messages to it have equal parts."""
    spread: float = Field(default=0.0, ge=0, le=5)
    """Sigma of a log-normal factor that each client has; 0 makes all clients equal."""
    regions: str | None = affects("place", default=None)
    """CSV file with round-trip milliseconds between regions, in the place of `latency`. Client i is in
    region i modulo their number.
    """
    server: Annotated[str | None, _RATE] = None
    """Rate of a server's link in each direction; null is that of the clients."""

    @property
    def latency_seconds(self) -> float:
        """`latency` in seconds."""
        return _checked(parse_time(self.latency))

    @property
    def bytes_per_second(self) -> tuple[float, float]:
        """`up` and `down` in bytes per second."""
        return _checked(parse_rate(self.up)) / 8, _checked(parse_rate(self.down)) / 8

    @property
    def server_bytes(self) -> float | None:
        """`server` in bytes per second, None if it is that of the clients."""
        return None if self.server is None else _checked(parse_rate(self.server)) / 8


class DeviceSettings(Section):
    """Devices of the clients."""

    speed: _Speed = "20GFLOP/s"
    """Operations per second of a device."""
    spread: float = Field(default=0.0, ge=0, le=5)
    """Sigma of a log-normal factor that each client has; 0 makes all clients equal."""

    @property
    def operations(self) -> float:
        """`speed` in operations per second."""
        return _checked(parse_speed(self.speed))


class Always(Section):
    """Every client takes part in every round."""

    kind: Literal["always"] = "always"


class Bernoulli(Section):
    """In every round each client takes part with probability `p`, independently of all others."""

    kind: Literal["bernoulli"]
    p: float = Field(default=0.9, gt=0, le=1)
    """Probability with which a client takes part in a round."""


class OnOff(Section):
    """Clients come and go in simulated time: stays and absences are exponential with these means."""

    kind: Literal["on-off"]
    on: _Span = "10min"
    """Mean stay."""
    off: _Span = "2min"
    """Mean absence."""

    @property
    def means(self) -> tuple[float, float]:
        """Mean stay and mean absence in seconds."""
        return _checked(parse_time(self.on)), _checked(parse_time(self.off))


class TraceFile(Section):
    """Intervals of presence per client from a JSON file, repeated for ever."""

    kind: Literal["trace"]
    path: str = affects("place")
    """JSON file with the intervals in which each client is present."""


Availability = Annotated[Always | Bernoulli | OnOff | TraceFile, Field(discriminator="kind")]


class Barrier(Section):
    """All clients begin every leg of a round together, when the slowest one is ready."""

    kind: Literal["barrier"] = "barrier"


class Neighbours(Section):
    """A client goes on as soon as the messages of its own neighbours are in."""

    kind: Literal["neighbours"]


class Deadline(Section):
    """A round lasts at most `seconds`; messages that come later are not used."""

    kind: Literal["deadline"]
    seconds: float = Field(default=5.0, gt=0, le=MOST_SECONDS)
    """Simulated seconds that a round lasts at most."""


Waiting = Annotated[Barrier | Neighbours | Deadline, Field(discriminator="kind")]


class EnvironmentSettings(Section):
    """Simulated time: what the federation's clients are connected by, compute on, and wait for."""

    links: LinkSettings = LinkSettings()
    """Latency and rates of the clients' links."""
    devices: DeviceSettings = DeviceSettings()
    """Speed of the clients' devices."""
    availability: Availability = Always()
    """Which clients take part in which rounds."""
    waiting: Waiting = Barrier()
    """For whom clients wait."""

    @property
    def always(self) -> bool:
        """Whether every client takes part in every round."""
        return isinstance(self.availability, Always) and not isinstance(self.waiting, Deadline)
