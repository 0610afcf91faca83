"""Throughput of the package's exchange compared with a bare `Neighbor_alltoallw` of the same bytes.

    mpirun -n 2 python benchmarks/exchange.py [--smallest BYTES] [--largest BYTES] [--repeats N]

Every rank is a neighbour of every other rank. These tasks are timed:

- bare: mpi4py's blocking `Neighbor_alltoallw` between buffers that exist before the clock starts. The
  lists of counts and displacements exist as well. Nothing is packed or read.
- channel: only the collective as the package calls it, `GraphChannel.start` and `wait`, on the same
  buffers.
- share: the complete `Exchange.share`, with which methods send vectors, from the clients' tensor to
  tensors by client. It includes planning, packing, booking, the collective, and views of what arrived.
- samples: the complete `Exchange.samples`, in one wave. In addition it stacks what arrived with the
  client's own data. Messages have two fields and 16 to 128 samples of 1,023 features.
- copy: a `memcpy` of the same bytes on all ranks at the same time. Packing costs one such copy, because
  the clients' arrays are not a send buffer. `samples` costs three: it packs, and stacks twice as much.

A vector or message has at most 2^19 bytes, and a rank has as many clients as that needs. The tasks
alternate in one process. Seconds are those of the slowest rank after a barrier. A ratio above 1 means
that the package is faster. "floor" is bare with the copies that cannot be avoided. Ratios compare the
shortest times, because other jobs disturb these least; ratios of medians are in brackets.

The last line is the latency and the bandwidth of a message between two ranks, for `scaling predict`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from mpi4py import MPI

from mpi_ntkdfl.comm.graph_channel import GraphChannel
from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.mpi import MpiWorld
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement

FEATURES = 1023
"""Features of a sample; with its label it has 4,096 bytes."""
MESSAGE = 2**19
"""Largest number of bytes of a message, about that of 200 samples of the paper's network."""
COPIES = {"channel": 0, "share": 1, "samples": 3}
"""Copies of the sent bytes that each task cannot avoid."""


def prepare(comm: MPI.Intracomm, nbytes: int) -> dict[str, Callable[[], object]]:
    """The timed tasks by name, for `nbytes` to each neighbour."""
    neighbours = [rank for rank in range(comm.size) if rank != comm.rank]
    total = nbytes * len(neighbours)
    counts = [nbytes] * len(neighbours)
    layout = counts, list(accumulate(counts, initial=0))[:-1], [MPI.BYTE] * len(counts)
    graph = comm.Create_dist_graph_adjacent(neighbours, neighbours, reorder=False)
    channel = GraphChannel(comm, neighbours)
    send = torch.randint(255, (total,), dtype=torch.uint8)
    leaving, arriving, target = send.numpy(), np.zeros(total, np.uint8), np.zeros(total, np.uint8)
    room, sizes = torch.from_numpy(arriving), tuple(counts)
    exchange = clients(comm, nbytes)
    each = len(exchange.federation.owned)
    vectors = torch.rand(each, nbytes // each // 4)

    def samples() -> None:
        for _ in exchange.samples(taus=1):
            pass

    return {
        "bare": lambda: graph.Neighbor_alltoallw([leaving, *layout], [arriving, *layout]),
        "channel": lambda: channel.start(send, sizes, sizes, room).wait(),
        "share": lambda: exchange.share(vectors, "weights"),
        "samples": samples,
        "copy": lambda: np.copyto(target, leaving),
    }


def clients(comm: MPI.Intracomm, nbytes: int) -> Exchange:
    """An exchange in which client k of every rank is a neighbour of client k of every other."""
    world, each = MpiWorld(comm), max(1, nbytes // MESSAGE)
    count = each * comm.size
    pairs = [(i, j) for i in range(count) for j in range(i + each, count, each)]
    rows = nbytes // each // (4 * (FEATURES + 1))
    placement = Placement(count, comm.size)
    own = {
        client: Samples(torch.rand(rows, FEATURES), torch.zeros(rows, dtype=torch.int64))
        for client in placement.owned(comm.rank)
    }
    federation = Federation(
        world=world,
        placement=placement,
        network=MLP((FEATURES, 2)),
        samples=own,
        sizes=np.full(count, rows),
        device=torch.device("cpu"),
        dtype=torch.float32,
        memory_limit=2**40,
        seed=0,
        ledger=Ledger(),
        clock=Clock(),
    )
    # On a lasting graph samples would be sent only once.
    return Exchange(federation, Graph.from_pairs(count, pairs), lasting=False)


def seconds(comm: MPI.Intracomm, task: Callable[[], object]) -> float:
    """Wall clock of the slowest rank."""
    comm.Barrier()
    start = MPI.Wtime()
    task()
    return float(comm.allreduce(MPI.Wtime() - start, op=MPI.MAX))


def measured(
    comm: MPI.Intracomm, tasks: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every repetition of every task; the tasks alternate."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            took = seconds(comm, task)
            if turn:  # the first touches the memory
                times[name].append(took)
    return times


def row(nbytes: int, times: dict[str, list[float]]) -> str:
    """A line of the table: shortest times and their ratios, with ratios of medians in brackets."""
    least = {name: min(taken) for name, taken in times.items()}
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    cells = [f"{nbytes / 1e6:.3f} MB"]
    cells += [f"{1e3 * least[name]:.3f} ms" for name in ("bare", "copy", *COPIES)]
    for name, copies in COPIES.items():
        to_bare, to_floor = (
            [taken["bare"] + extra * taken["copy"] for taken in (least, middle)]
            for extra in (0, copies)
        )
        for floor in (to_bare, to_floor) if copies else (to_bare,):
            cells.append(f"{floor[0] / least[name]:.2f} ({floor[1] / middle[name]:.2f})")
    return "| " + " | ".join(cells) + " |"


def network(comm: MPI.Intracomm, repeats: int) -> tuple[float, float]:
    """Latency in seconds and bytes per second between ranks 0 and 1, from half a round trip."""
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
    parser.add_argument("--repeats", type=int, default=9, help="ten times as many up to 1 MB")
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    if comm.size < 2:
        raise SystemExit("start it on at least 2 ranks: mpirun -n 2 python benchmarks/exchange.py")
    if comm.rank == 0:
        print(f"{comm.size} ranks, {MPI.Get_library_version().split(chr(10))[0].strip(chr(0))}")
        heads = ["a neighbour", "bare", "copy", *COPIES]
        for name, copies in COPIES.items():
            heads += [f"bare / {name}", f"floor / {name}"] if copies else [f"bare / {name}"]
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    nbytes = options.smallest
    while nbytes <= options.largest:
        repeats = options.repeats * (10 if nbytes <= 2**20 else 1)
        times = measured(comm, prepare(comm, nbytes), repeats)
        if comm.rank == 0:
            print(row(nbytes, times), flush=True)
        nbytes *= 4
    latency, bandwidth = network(comm, options.repeats)
    if comm.rank == 0:
        print(f"--network {latency:.2e},{bandwidth:.2e}   (latency in s, bytes/s, ranks 0 and 1)")


if __name__ == "__main__":
    main()
