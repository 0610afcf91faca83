"""A graph of your own: two groups of hospitals with one link between them.

Command:   python examples/own_graph.py
Cost:      about 15 seconds on one core.
It shows:  how a graph that mixes slowly holds the clients' weights apart (deviation), compared with a
           ring and a complete graph on the same data.
"""

from itertools import combinations
from pathlib import Path

import mpi_ntkdfl as nd

folder = Path("example-runs")
folder.mkdir(exist_ok=True)
edges = [*combinations(range(6), 2), (5, 6), *combinations(range(6, 12), 2)]
graph = folder / "two_groups.edges"
graph.write_text("".join(f"{a} {b}\n" for a, b in edges))

graphs = {
    "two groups": {"kind": "file", "path": str(graph)},
    "ring": {"kind": "ring"},
    "complete": {"kind": "complete"},
}
for name, topology in graphs.items():
    config = nd.load_config("quickstart", clients=12, rounds=4, topology=topology)
    record = nd.run(config, folder / f"own_graph-{name.replace(' ', '-')}.h5", overwrite=True)
    table = record.table()
    print(
        f"{name:11} accuracy {table['accuracy'][-1]:.3f}, deviation {table['deviation'][-1]:.3f}, "
        f"{table['bytes'][-1] / 1e6:.0f} MB sent"
    )
