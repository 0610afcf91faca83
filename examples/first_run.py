"""A first run and its curve: NTK-DFL on 16 clients, in this process, without MPI.

Command:   python examples/first_run.py
Cost:      about 10 seconds on one core, 300 MB of memory.
It shows:  the accuracy of the average of all clients rises within a few rounds, and `first_run.png` has
           the curve. The same configuration under `mpirun -n 4` gives the same bits.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import mpi_ntkdfl as nd

folder = Path("example-runs")
config = nd.load_config("quickstart", clients=16, rounds=5)
record = nd.run(config, folder / "first_run.h5", overwrite=True)

table = record.table()
for done, accuracy in zip(table["rounds"], table["accuracy"], strict=True):
    print(f"after {done:.0f} rounds: accuracy of the average {accuracy:.3f}")

plt.plot(table["rounds"], table["accuracy"], marker="o", label="average of all clients")
plt.plot(table["rounds"], table["client-accuracy"], marker="s", label="mean client")
plt.xlabel("rounds")
plt.ylabel("test accuracy")
plt.legend()
plt.savefig(folder / "first_run.png", dpi=150)
print(f"curve: {folder / 'first_run.png'}")
