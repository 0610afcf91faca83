"""Sizes and times in the form that people read and write."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


def readable(nbytes: float) -> str:
    """A number of bytes with a decimal unit, such as 1.5 MB."""
    if not math.isfinite(nbytes):
        return f"{nbytes} B"
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def round_words(done: int, rounds: int) -> str:
    """How many rounds of a run are done, such as `round  3/20`."""
    return f"round {done:>{len(str(rounds))}}/{rounds}"


def three_digits(seconds: float) -> str:
    """A number with at least three digits and without an exponent: 0.123, 1.23, 12.3, 1234."""
    digits = 0
    if 0 < seconds < math.inf:
        digits = min(max(2 - math.floor(math.log10(seconds)), 0), 3)
    return f"{seconds:.{digits}f}"


_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_bytes(size: float | str) -> int:
    """The bytes that a number or a text such as "2GB" or "512MiB" stands for; 0 for anything else."""
    if not isinstance(size, str):
        return size if isinstance(size, int) else 0
    from decimal import Decimal

    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMG]i?B)?\s*", size, re.IGNORECASE)
    return int(Decimal(match[1]) * _BYTES[(match[2] or "").upper()]) if match else 0


def parse_seconds(time: float | str) -> float:
    """The seconds that a number or a text such as "90m" or "2-12:00:00" stands for; 0 for other text."""
    if isinstance(time, int | float):
        return time
    if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(s|m|min|h|d)\s*", time):
        return float(match[1]) * _SECONDS[match[2]]
    if match := re.fullmatch(r"\s*(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)\s*", time):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    return 0.0


# ------------------------------------------------------------------------- quantities with their units

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def parse_time(text: object) -> float | None:
    """The seconds of a text such as "50ms", "2s" or "10min"; None for anything without a unit of time."""
    return _quantity(text, _TIMES)


def parse_rate(text: object) -> float | None:
    """The bits per second of a text such as "10Mbit/s"; None for anything without such a unit."""
    return _quantity(text, {f"{prefix}bit/s": value for prefix, value in _PREFIXES.items()})


def parse_speed(text: object) -> float | None:
    """The operations per second of a text such as "20GFLOP/s"; None for anything without such a unit."""
    return _quantity(text, {f"{prefix}FLOP/s": value for prefix, value in _PREFIXES.items()})


def _quantity(text: object, units: Mapping[str, float]) -> float | None:
    """The value of a number with one of `units`; Decimal keeps 0.1ms the nearest float to 1e-4."""
    from decimal import Decimal

    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)\s*([A-Za-z/]+)\s*", str(text))
    if not isinstance(text, str) or match is None or match[2] not in units:
        return None
    return float(Decimal(match[1]) * Decimal(repr(units[match[2]])))
