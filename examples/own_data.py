"""Data of your own: four sites with different class frequencies, registered as a data set.

Command:   python examples/own_data.py
Cost:      about 10 seconds on one core.
It shows:  what a loader returns, and NTK-DFL beside training without any exchange on the same data.
           From the command line the same file works as a plugin:
           python -m mpi_ntkdfl run FILE.yaml --plugin examples/own_data.py
"""

import numpy as np

import mpi_ntkdfl as nd


def rings(samples: int = 800, noise: float = 0.25, seed: int = 0) -> dict[str, np.ndarray]:
    """Three noisy rings in the plane; the class of a point is the number of its ring."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=samples)
    angle = rng.uniform(0, 2 * np.pi, samples)
    radius = 1.0 + y + noise * rng.standard_normal(samples)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    cut = 3 * samples // 4
    return {"x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:], "y_test": y[cut:]}


nd.register_dataset("rings", rings)

if __name__ == "__main__":
    for method in ("ntk-dfl", "local"):
        config = nd.load_config(
            "quickstart",
            dataset={"name": "rings", "options": {"samples": 1200}},
            partition={"kind": "dirichlet", "alpha": 0.2},
            topology={"kind": "ring"},
            model={"name": "mlp", "hidden": [64]},
            algorithm={"name": method},
            clients=8,
            rounds=4,
        )
        record = nd.run(config, f"example-runs/own_data-{method}.h5", overwrite=True)
        table = record.table()
        print(
            f"{method:8} accuracy of the average {table['accuracy'][-1]:.3f}, "
            f"mean client {table['client-accuracy'][-1]:.3f}"
        )
