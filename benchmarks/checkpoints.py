"""Checkpoints of one file and of parts: seconds, and the memory that writing adds on rank 0.

    mpirun -n 4 python benchmarks/checkpoints.py [--gigabytes G] [--params P] [--times N] [--folder F]

All ranks hold random weights, G gigabytes together. Checkpoints of both kinds are written in turn, and
the last one of each kind is read. Seconds are wall clock: both are limited by the disk, and a checkpoint
ends when its bytes are on the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.mpi import open_world
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.storage.checkpoint import Checkpoint, Header
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.saving import Saving
from mpi_ntkdfl.topology.placement import Placement


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status, such as `VmHWM`, the peak of the resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Prints one line per kind."""
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--gigabytes", type=float, default=2.0)
    words.add_argument("--params", type=int, default=79510)
    words.add_argument("--times", type=int, default=5)
    words.add_argument("--folder", default=None, help="Where to write; default a temporary folder.")
    given = words.parse_args()
    world = open_world()
    clients = int(given.gigabytes * 1e9 / (4 * given.params))
    placement = Placement(clients, world.size)
    random = np.random.default_rng(world.rank)
    mine = random.random((len(placement.owned(world.rank)), given.params), np.float32)
    folder = Path(world.on_root(lambda: tempfile.mkdtemp(dir=given.folder)))
    kinds = {"one file": None, "parts": 1}
    outputs = {kind: Outputs(folder / f"{kind.replace(' ', '-')}.h5") for kind in kinds}
    saving = {
        kind: Saving(world, placement, Ledger(), outputs[kind], smallest)
        for kind, smallest in kinds.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    added = dict.fromkeys(kinds, 0)
    for done in range(given.times):
        for kind in kinds:
            world.largest(0.0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
            before, start = status("VmRSS"), time.monotonic()
            saving[kind].save(Header("", Layout({"w": (given.params,)}), done), {"params": mine})
            world.largest(0.0)  # rank 0 ends last
            seconds[kind].append(time.monotonic() - start)
            added[kind] = max(added[kind], status("VmHWM") - before)
    if world.rank == 0:
        print(f"{clients} clients, {clients * given.params * 4 / 1e9:.2f} GB, {world.size} ranks")
        for kind in kinds:
            start = time.monotonic()
            with contextlib.closing(Checkpoint(outputs[kind].checkpoint)) as read:
                same = np.array_equal(read.rows("params", placement.owned(0)), mine)
            print(
                f"{kind:9} {statistics.median(seconds[kind]):6.2f} s (median of "
                f"{', '.join(f'{each:.2f}' for each in seconds[kind])}), rank 0 +{added[kind] / 1e6:.0f} "
                f"MB beside its {mine.nbytes / 1e6:.0f} MB; verified in {time.monotonic() - start:.2f} s"
                f"{'' if same else '; OTHER WEIGHTS'}",
                flush=True,
            )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
