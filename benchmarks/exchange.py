"""Throughput of the package's exchange against bare `Neighbor_alltoallw` on the same graph and bytes.

    mpirun -n 4 python benchmarks/exchange.py [--largest BYTES] [--repeats N]

Every rank is a neighbour of every other. "package" is what a wave costs: arrays packed into the send
buffer (`Outgoing`), sent (`GraphChannel`), read where they lie (`MessageFormat.read`), and copied once
into the stacked samples the kernel works on. "bare" sends from and into buffers that exist already, and
copies once on either side likewise, since data that nobody packs or stacks is of no use. The two
alternate; figures are bytes received over seconds of the slowest rank, the best of all repeats, which
others on the machine disturb least. "copy" is what memory does alone: the same bytes through
`memcpy`, with all ranks at it.

Then latency and bytes a second of a message between two ranks, for `scaling predict`.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import accumulate

import numpy as np
import torch
from mpi4py import MPI

from mpi_ntkdfl.clock import Clock
from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.comm.neighbours import GraphChannel
from mpi_ntkdfl.comm.staging import DirectStaging
from mpi_ntkdfl.comm.transfer import Outgoing, Transfer

ROW = 1024
MESSAGE = 2**19
"""Bytes of a message at most, about those of 200 samples of the paper's network."""


class Package:
    """Messages of about `MESSAGE` bytes to each neighbour, through the package."""

    def __init__(self, comm: MPI.Intracomm, neighbours: list[int], nbytes: int) -> None:
        self.channel = GraphChannel(comm, neighbours)
        self.form = MessageFormat({"vector": Field("weights", (ROW,), torch.float32)})
        self.each = max(1, nbytes // MESSAGE)
        self.rows = nbytes // self.each // (4 * ROW)
        self.count = self.each * len(neighbours)
        self.sizes = np.full(self.count, self.rows)
        self.source = torch.rand(self.each, self.rows, ROW)
        self.stacked = torch.empty(self.count, self.rows, ROW)
        self.share = [self.each * self.form.nbytes(self.rows)] * len(neighbours)

    def exchange(self) -> None:
        """One wave."""
        outgoing, way = Outgoing(Ledger(), DirectStaging()), DirectStaging()
        for client in range(self.count):
            row = self.source[client % self.each]
            outgoing.add(self.form, self.rows, lambda row=row: {"vector": row})
        pending = outgoing.start(self.channel, self.share, self.share)
        pairs = [(0, client) for client in range(self.count)]
        made = Transfer(pending, pairs, self.form, self.sizes, lambda _: {}, way, Clock())
        arrived = made.finish()
        for client in range(self.count):
            self.stacked[client].copy_(arrived(0, client)["vector"])

    def close(self) -> None:
        """Frees the communicator."""
        self.channel.close()


class Bare:
    """The same bytes by mpi4py alone, from buffers that are there before the clock starts."""

    def __init__(self, comm: MPI.Intracomm, neighbours: list[int], nbytes: int) -> None:
        self.graph = comm.Create_dist_graph_adjacent(neighbours, neighbours, reorder=False)
        total = nbytes * len(neighbours)
        self.source = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
        self.send, self.receive = np.zeros(total, np.uint8), np.zeros(total, np.uint8)
        self.stacked = np.zeros(total, np.uint8)
        counts = [nbytes] * len(neighbours)
        starts = list(accumulate(counts, initial=0))[:-1]
        self.layout = counts, starts, [MPI.BYTE] * len(counts)

    def exchange(self) -> None:
        """One exchange with a copy on either side."""
        self.send.reshape(-1, len(self.source))[:] = self.source
        self.graph.Neighbor_alltoallw([self.send, *self.layout], [self.receive, *self.layout])
        self.stacked[:] = self.receive

    def close(self) -> None:
        """Frees the communicator."""
        self.graph.Free()


def seconds(comm: MPI.Intracomm, task: object) -> float:
    """Wall clock of the slowest rank."""
    comm.Barrier()
    start = MPI.Wtime()
    task()  # type: ignore[operator]
    return float(comm.allreduce(MPI.Wtime() - start, op=MPI.MAX))


def network(comm: MPI.Intracomm, repeats: int) -> tuple[float, float]:
    """Latency in seconds and bytes a second of ping-pong between ranks 0 and 1, half a round trip."""
    found = {}
    for nbytes in (8, 2**24):
        buffer = np.zeros(nbytes, np.uint8)
        times = []
        for _ in range(100 if nbytes == 8 else repeats):
            comm.Barrier()
            start = MPI.Wtime()
            if comm.rank == 0:
                comm.Send(buffer, 1)
                comm.Recv(buffer, 1)
            elif comm.rank == 1:
                comm.Recv(buffer, 0)
                comm.Send(buffer, 0)
            times.append((MPI.Wtime() - start) / 2)
        found[nbytes] = statistics.median(times)
    return found[8], 2**24 / (found[2**24] - found[8])


def main() -> None:
    """Prints a line for each size, on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smallest", type=int, default=2**16, help="bytes a neighbour")
    parser.add_argument("--largest", type=int, default=2**26, help="bytes a neighbour")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    if comm.size < 2:
        raise SystemExit("start it on at least 2 ranks: mpirun -n 2 python benchmarks/exchange.py")
    neighbours = [rank for rank in range(comm.size) if rank != comm.rank]
    if comm.rank == 0:
        print(f"{comm.size} ranks, {MPI.Get_library_version().split(chr(10))[0].strip(chr(0))}")
        print(f"{'a neighbour':>12}{'package':>12}{'bare':>12}{'ratio':>8}{'copy':>12}")
    nbytes = options.smallest
    while nbytes <= options.largest:
        package, bare = Package(comm, neighbours, nbytes), Bare(comm, neighbours, nbytes)
        total = nbytes * len(neighbours)
        target, source = np.zeros(total, np.uint8), np.ones(total, np.uint8)
        tasks = {
            "package": package.exchange,
            "bare": bare.exchange,
            "copy": lambda target=target, source=source: np.copyto(target, source),
        }
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for turn in range(options.repeats + 1):
            for name, task in tasks.items():
                took = seconds(comm, task)
                if turn:  # the first touches the memory
                    times[name].append(took)
        rate = {name: total / min(taken) / 1e9 for name, taken in times.items()}
        if comm.rank == 0:
            ratio = rate["package"] / rate["bare"]
            print(
                f"{nbytes / 1e6:>9.3f} MB{rate['package']:>7.2f} GB/s{rate['bare']:>7.2f} GB/s"
                f"{ratio:>8.2f}{rate['copy']:>7.2f} GB/s",
                flush=True,
            )
        package.close()
        bare.close()
        nbytes *= 4
    latency, bandwidth = network(comm, options.repeats)
    if comm.rank == 0:
        print(f"--network {latency:.2e},{bandwidth:.2e}   (latency in s, bytes/s, ranks 0 and 1)")


if __name__ == "__main__":
    main()
