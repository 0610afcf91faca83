"""Numbers for people."""

from __future__ import annotations

import numpy as np


def readable(nbytes: float) -> str:
    """Bytes with a decimal unit: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def round_words(done: int, rounds: int) -> str:
    """How far a run is: round  3/20."""
    return f"round {done:>{len(str(rounds))}}/{rounds}"


def accuracy_words(average: float, clients: np.ndarray) -> list[str]:
    """Accuracy of the average, and the mean of the clients' `[client]` unless it was not measured."""
    words = [f"average {average:.4f}"]
    if not np.isnan(clients).all():
        words.append(f"mean client {clients.mean():.4f}")
    return words
