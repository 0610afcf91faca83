"""Links and devices of a federation's nodes: the clients 0 to M-1, and as node M a server."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.config.environment import DeviceSettings, LinkSettings
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
MOST_REGIONS = 10_000
MOST_ROUND_TRIP = 7.2e6
"""Bound of a round-trip time in milliseconds: two hours."""


@dataclass(frozen=True)
class Links:
    """The links of all nodes.

    Attributes:
        up: bytes per second that each node can send, `[client + 1]`; the last node is the server.
        down: bytes per second that each node can receive, `[client + 1]`.
        regions: region of each node, `[client + 1]`.
        latencies: seconds of a message on its way from one region to another, `[region, region]`.
    """

    up: Floats
    down: Floats
    regions: Integers
    latencies: Floats

    @classmethod
    def of(cls, settings: LinkSettings, clients: int, seed: int) -> Links:
        """The links that settings describe; the log-normal factors depend on the seed only.

        Raises:
            InputError: if the file of regions cannot be used.
        """
        factors = _factors(settings.spread, "links", clients, seed)
        up, down = (factors * rate for rate in settings.bytes_per_second)
        if settings.server_bytes is not None:
            up[-1] = down[-1] = settings.server_bytes
        latencies = np.array([[settings.latency_seconds]])
        if settings.regions is not None:
            latencies = read_regions(settings.regions) / 2e3
        regions = np.arange(clients + 1, dtype=np.int64) % len(latencies)
        regions[-1] = 0
        return cls(up, down, regions, latencies)

    def seconds(self, source: Integers, target: Integers, nbytes: Floats) -> Floats:
        """Seconds of messages that are sent at the same time, `[message]`.

        A message has its latency, and the smaller of two rates: an equal part of its source's `up`, and
        an equal part of its target's `down`. Parts do not grow when other messages have arrived.

        Args:
            source: node that sends each message, `[message]`.
            target: node that receives it, `[message]`.
            nbytes: its length, `[message]`.
        """
        sent = np.bincount(source, minlength=len(self.up))
        received = np.bincount(target, minlength=len(self.down))
        rates = np.minimum(self.up[source] / sent[source], self.down[target] / received[target])
        return self.latency(source, target) + nbytes / rates

    def latency(self, source: Integers, target: Integers) -> Floats:
        """Seconds before the first byte of each message arrives, `[message]`."""
        delays: Floats = self.latencies[self.regions[source], self.regions[target]]
        return delays


def speeds(settings: DeviceSettings, clients: int, seed: int) -> Floats:
    """Operations per second of each node, `[client + 1]`; the server's device has no spread."""
    return _factors(settings.spread, "devices", clients, seed) * settings.operations


def _factors(spread: float, purpose: str, clients: int, seed: int) -> Floats:
    """Log-normal factors with median 1 of the clients, and 1 of the server, `[client + 1]`."""
    drawn = seeds.generator(seed, purpose).standard_normal(clients)
    return np.append(np.exp(spread * drawn), 1.0)


def read_regions(written: str) -> Floats:
    """Round-trip milliseconds `[region, region]` from a CSV file.

    The first row may hold names; then the first column may hold them as well.

    Raises:
        InputError: if it cannot be read, is no square matrix, or holds something else than times.
    """
    setting = "environment.links.regions"
    path = user_path(written, setting)
    rows = _without_names(_rows(path, setting))
    if not rows or any(len(row) != len(rows) for row in rows) or len(rows) > MOST_REGIONS:
        lengths = sorted({len(row) for row in rows})
        raise InputError(
            f"{setting}: {path} must hold a square matrix, got {len(rows)} rows of "
            f"{', '.join(map(str, lengths)) or 'no'} numbers"
        )
    for place, row in enumerate(rows):
        for cell in row:
            value = _as_number(cell)
            if value is None or not 0 <= value <= MOST_ROUND_TRIP:
                raise InputError(
                    f"{setting}: {path}, row {place + 1}: round-trip times are numbers of milliseconds "
                    f"from 0 to {MOST_ROUND_TRIP:.0f}, got {cell!r}"
                )
    return np.array(rows, dtype=np.float64)


def _rows(path: Path, setting: str) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{setting}: {path} cannot be read: {reason}") from error


def _without_names(rows: list[list[str]]) -> list[list[str]]:
    """The cells below the row and right of the column that hold names, if there are names."""
    if rows and all(_as_number(cell) is None for cell in rows[0][1:]) and len(rows[0]) > 1:
        rows = rows[1:]
        if all(row and _as_number(row[0]) is None for row in rows):
            rows = [row[1:] for row in rows]
    return rows


def _as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
