"""Numbers for people."""

from __future__ import annotations

import math


def readable(nbytes: float) -> str:
    """Bytes with a decimal unit: 1.5 MB."""
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
    """How far a run is: round  3/20."""
    return f"round {done:>{len(str(rounds))}}/{rounds}"


def three_digits(seconds: float) -> str:
    """Three digits at least, and no exponent: 0.123, 1.23, 12.3, 1234."""
    digits = 0
    if 0 < seconds < math.inf:
        digits = min(max(2 - math.floor(math.log10(seconds)), 0), 3)
    return f"{seconds:.{digits}f}"
