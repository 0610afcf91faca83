"""Two methods, three seeds each, with error bands: what a comparison needs to be fair.

Command:   python examples/compare_methods.py
Cost:      about 40 seconds on one core.
It shows:  NTK-DFL and DFedAvg on the same partitions, graphs and starting weights; mean and standard
           deviation over seeds, the rounds and bytes to a target, and a figure.
"""

from pathlib import Path

import numpy as np

import mpi_ntkdfl as nd

folder, target = Path("example-runs"), 0.8
settings = {
    "NTK-DFL": {"name": "ntk-dfl"},
    "DFedAvg": {"name": "dfedavg", "epochs": 5},
}
curves = {}
for label, algorithm in settings.items():
    tables = []
    for seed in range(3):
        config = nd.load_config(
            "quickstart",
            clients=12,
            rounds=5,
            seed=seed,
            algorithm=algorithm,
            **{"evaluation.clients": False},
        )
        path = folder / f"compare-{algorithm['name']}-{seed}.h5"
        tables.append(nd.run(config, path, overwrite=True).table())
    curves[label] = np.array([table["accuracy"] for table in tables])  # [seed, row]
    reached = [np.flatnonzero(table["accuracy"] >= target) for table in tables]
    rounds = [int(rows[0]) if len(rows) else None for rows in reached]
    print(
        f"{label}: final {curves[label][:, -1].mean():.3f} +- {curves[label][:, -1].std(ddof=1):.3f}, "
        f"rounds to {target:.0%}: {rounds}"
    )

import matplotlib.pyplot as plt  # noqa: E402

for label, values in curves.items():
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    (line,) = plt.plot(mean, marker="o", label=label)
    plt.fill_between(range(len(mean)), mean - sd, mean + sd, alpha=0.2, color=line.get_color())
plt.xlabel("rounds")
plt.ylabel("test accuracy of the average")
plt.legend()
plt.savefig(folder / "compare_methods.png", dpi=150)
