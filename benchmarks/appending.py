"""Bytes that the record of a long run costs: what is written, beside the size of the final file.

    python benchmarks/appending.py [--clients M] [--rounds N] [--degree D] [--copies]

A synthetic run of M clients on a dynamic D-regular graph, all clients evaluated after every round. It
prints bytes written, the size of the file, their ratio, and milliseconds per append. `--copies` measures
what it would be if every append made a copy of the whole file.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.metrics import recorded
from mpi_ntkdfl.runtime import hdf5
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.storage import growing
from mpi_ntkdfl.storage.record import Record, RoundRecord

written = 0


def count() -> None:
    """Counts what goes through HDF5 files that are written, and copies of files."""
    write, copy = hdf5._Patient.write, shutil.copyfile

    def counted_write(self: hdf5._Patient, data: bytes) -> int:
        global written
        size = write(self, data)
        written += size
        return size

    def counted_copy(source: Path, target: Path) -> Path:
        global written
        written += source.stat().st_size
        return copy(source, target)

    hdf5._Patient.write = counted_write  # type: ignore[method-assign, assignment]
    shutil.copyfile = counted_copy  # type: ignore[assignment]


def main() -> None:
    """Prints the table."""
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--clients", type=int, default=5000)
    words.add_argument("--rounds", type=int, default=1000)
    words.add_argument("--degree", type=int, default=5)
    words.add_argument("--copies", action="store_true")
    given = words.parse_args()
    if given.copies:
        growing.IN_PLACE_FROM = 2**62
    count()
    clients, random = given.clients, np.random.default_rng(0)
    samples = {"offsets": np.arange(clients + 1) * 10, "indices": np.arange(10 * clients)}
    shapes = {"row": (), "row,client": (clients,)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.h5")
        record = Record(path)
        record.create({"config": "rounds: 1\n", "seed": 0, "data": ""}, clients, 1, samples)
        begin = time.monotonic()
        for done in range(given.rounds + 1):
            row = {
                metric.name: random.random(shapes[metric.axes])
                for metric in recorded()
                if metric.axes in shapes
            }
            edges = random.integers(0, clients, (clients * given.degree // 2, 2))
            traffic = random.integers(0, 9, (2, len(TRAFFIC_PHASES)))
            seconds, flights = random.random((1, len(PHASES))), random.random((1, 2))
            taus = random.integers(1, 9, clients)
            of_round = RoundRecord(edges, traffic, seconds, 1, flights) if done else None
            record.append(done, taus, row, of_round)
            if done in (10, 30, 100, 300, given.rounds):
                size = path.stat().st_size
                print(
                    f"{done:6} rounds: {written / 1e6:10.1f} MB written, file {size / 1e6:7.1f} MB, "
                    f"ratio {written / size:6.1f}, "
                    f"{(time.monotonic() - begin) / (done + 1) * 1e3:.1f} ms per append",
                    flush=True,
                )
        record.close()


if __name__ == "__main__":
    main()
