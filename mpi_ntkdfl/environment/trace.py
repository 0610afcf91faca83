"""Files that tell when each client is present: this program's own form, and that of FedScale.

The own form is JSON, in seconds:

    {"repeat": 86400, "clients": [[[0, 3600], [7200, 9000]], [[1800, 86400]]]}

Client i is present in the intervals `[start, end)` of `clients[i]`, which are ascending and lie between 0
and `repeat`. After `repeat` seconds everything begins again.

FedScale (Lai et al., "FedScale", ICML 2022) tells of each client when it becomes active and inactive, and
after how many seconds its own trace begins again. As JSON this is a list or a mapping by number:

    {"1": {"active": [0, 7200], "inactive": [3600, 9000], "finish_time": 86400}, "2": {...}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpi_ntkdfl.config.environment import MOST_SECONDS
from mpi_ntkdfl.environment.links import Floats, Integers
from mpi_ntkdfl.environment.rounds import Truths
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path

_SLACK = 5e-7
"""Seconds by which clocks may be behind the start of an interval: rounded sums are not exact."""

_SETTING = "environment.availability.path"


@dataclass(frozen=True)
class Trace:
    """Intervals of all clients, one client after another.

    Attributes:
        starts: the start of each interval in seconds, `[interval]`.
        ends: the end of each interval in seconds, `[interval]`.
        offsets: client i has the intervals from `offsets[i]` to `offsets[i + 1] - 1`, `[client + 1]`.
        repeats: after how many seconds each client's intervals begin again, `[client]`.
    """

    starts: Floats
    ends: Floats
    offsets: Integers
    repeats: Floats

    def present(self, times: Floats) -> Truths:
        """Which clients are present at their `times` `[client]`."""
        owner = np.repeat(np.arange(len(self.repeats)), np.diff(self.offsets))
        phase = np.mod(times + _SLACK, self.repeats)[owner]
        inside = (self.starts <= phase) & (phase < self.ends)
        present: Truths = np.bincount(owner[inside], minlength=len(self.repeats)) > 0
        return present

    def next_arrival(self, time: float) -> float:
        """The earliest second, not before `time`, at which an interval begins."""
        repeats = np.repeat(self.repeats, np.diff(self.offsets))
        turn = np.ceil((time - self.starts) / repeats)
        return float((self.starts + np.maximum(turn, 0) * repeats).min())


def read_trace(written: str, clients: int) -> Trace:
    """Reads a file of either form.

    Raises:
        InputError: if it cannot be read, is of another number of clients, or has intervals that are
            no ascending ones within the time after which they repeat.
    """
    path = user_path(written, _SETTING)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"no JSON ({error})"
        raise InputError(f"{_SETTING}: {path} cannot be read: {reason}") from error
    try:
        by_client = _own_form(raw) if _is_own(raw) else _fedscale(raw)
        if len(by_client) != clients:
            raise ValueError(f"the trace is of {len(by_client)} clients, but clients={clients}")
        checked = [_checked(client, *each) for client, each in enumerate(by_client)]
    except ValueError as error:
        raise InputError(f"{_SETTING}: {path}: {error}") from error
    lengths = [len(intervals) for intervals, _ in checked]
    if not any(lengths):
        raise InputError(f"{_SETTING}: {path}: at least one client must be present at some time")
    every = np.concatenate([intervals for intervals, _ in checked])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Trace(every[:, 0], every[:, 1], offsets, np.array([repeat for _, repeat in checked]))


def _is_own(raw: object) -> bool:
    return isinstance(raw, Mapping) and "clients" in raw


def _own_form(raw: Mapping[str, Any]) -> list[tuple[object, object]]:
    """The intervals of each client with the time after which they repeat."""
    if unknown := set(raw) - {"repeat", "clients"}:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}; there are: repeat, clients")
    if not isinstance(raw["clients"], list):
        raise ValueError("clients must be a list with the intervals of each client")
    return [(intervals, raw.get("repeat")) for intervals in raw["clients"]]


def _fedscale(raw: object) -> list[tuple[object, object]]:
    """The same of FedScale's form."""
    if isinstance(raw, Mapping) and all(str(key).isdigit() for key in raw):
        raw = [raw[key] for key in sorted(raw, key=int)]
    if not isinstance(raw, list):
        raise ValueError(
            'expected {"repeat": SECONDS, "clients": [[[START, END], ...], ...]} or the form of FedScale'
        )
    return [_of_fedscale(client, each) for client, each in enumerate(raw)]


def _of_fedscale(client: int, each: object) -> tuple[object, object]:
    keys = ("active", "inactive", "finish_time")
    if not isinstance(each, Mapping) or not set(keys) <= set(each):
        raise ValueError(f"client {client} needs the keys {', '.join(keys)}")
    begins, ends = each["active"], each["inactive"]
    if not isinstance(begins, list) or not isinstance(ends, list) or len(begins) != len(ends):
        raise ValueError(f"client {client}: active and inactive must be lists of the same length")
    return [list(pair) for pair in zip(begins, ends, strict=True)], each["finish_time"]


def _checked(client: int, intervals: object, repeat: object) -> tuple[Floats, float]:
    """The intervals `[interval, 2]` of a client, and the time after which they repeat.

    Raises:
        ValueError: naming the client.
    """
    whole = _time(repeat)
    if whole is None or not 0 < whole <= MOST_SECONDS:
        raise ValueError(f"repeat must be seconds above 0, up to a year, got {repeat!r}")
    if not isinstance(intervals, Sequence) or not all(_is_pair(pair) for pair in intervals):
        raise ValueError(f"client {client}: intervals are [START, END] in seconds")
    before = 0.0
    for start, end in intervals:
        if start >= end:
            raise ValueError(f"client {client}: interval [{start}, {end}] must end after its start")
        if start < before:
            raise ValueError(
                f"client {client}: interval [{start}, {end}] overlaps the one before or begins below 0; "
                "intervals must be ascending"
            )
        before = end
    if before > whole:
        raise ValueError(f"client {client}: interval ends at {before}, after repeat={whole:g}")
    return np.array(intervals, dtype=np.float64).reshape(-1, 2), whole


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and None not in map(_time, pair)


def _time(value: object) -> float | None:
    """A number of seconds, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST_SECONDS:
        return None
    return float(value) if math.isfinite(value) else None
