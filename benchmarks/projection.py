"""The error of the kernel of projected Jacobians against the number k of columns, beside 1/sqrt(k).

    python benchmarks/projection.py [--features 784] [--hidden 100] [--samples 60] [--draws 3]

The first numbers are the relative errors (Frobenius norm) of the kernel of the first layer only and of
the whole network, mean and deviation over draws of the matrices. The last ones are about the neighbours'
part of an update, with random residuals: the norm of its lifted form in the first layer, relative to the
exact one, and what `sqrt(1 + (p + 1) / k)` predicts for a layer of p parameters.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

from mpi_ntkdfl.model.jacobian import symmetric_product
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.projection import MATRIX_ROOM, Projection

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def main() -> None:
    """Prints one line per k."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("features", 784), ("hidden", 100), ("samples", 60), ("draws", 3)):
        words.add_argument(f"--{name}", type=int, default=default)
    given = words.parse_args()
    network, rng = MLP((given.features, given.hidden, 10)), np.random.default_rng(0)
    params = torch.from_numpy(network.initial(rng)).float()
    inputs = torch.from_numpy(rng.standard_normal((given.samples, given.features))).float()
    jacobian = network.jacobian(params, inputs)
    first = given.hidden * (given.features + 1)
    whole = jacobian.trace_gram()
    upper = (jacobian.inputs[1] @ jacobian.inputs[1].T + 1) * 10
    residuals = torch.from_numpy(rng.standard_normal((1, given.samples, 10))).float()
    exact = jacobian.transposed_product(residuals)[0]
    print("    k  1/sqrt(k)  first layer       network           lifted norm  predicted")
    for k in WIDTHS:
        errors = []
        for number in range(given.draws):
            projection = Projection(network.layout, k, 0, number, params, MATRIX_ROOM)
            entries = jacobian.projected(projection)
            found = (
                symmetric_product(entries[:, :, :k].flatten(1)),
                symmetric_product(entries.flatten(1)),
            )
            lifted = projection.lift(residuals.flatten(1) @ entries.flatten(0, 1))[0]
            errors.append(
                (
                    float((found[0] - (whole - upper)).norm() / (whole - upper).norm()),
                    float((found[1] - whole).norm() / whole.norm()),
                    float(lifted[:first].norm() / exact[:first].norm()),
                )
            )
        mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0)
        print(
            f"{k:5}  {1 / math.sqrt(k):9.4f}  {mean[0]:.4f} +- {spread[0]:.4f}"
            f"  {mean[1]:.4f} +- {spread[1]:.4f}  {mean[2]:11.2f}  {math.sqrt(1 + (first + 1) / k):9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
