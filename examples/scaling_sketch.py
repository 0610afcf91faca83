"""How many ranks are worth it? Runs on 1 and 2 ranks, their efficiency, and a prediction for a cluster.

Command:   python examples/scaling_sketch.py
Cost:      about 30 seconds on two cores. It needs mpirun.
It shows:  `scaling run`, `scaling report` and `scaling predict` as commands of one program; figures for
           2 ranks mean little on a busy laptop, the commands are the same on a cluster.
"""

import subprocess
import sys

nd = [sys.executable, "-m", "mpi_ntkdfl"]
small = ["--set", "partition.samples=60", "--set", "topology.degree=4"]
folder = "example-runs/scaling"

subprocess.run(
    [*nd, "scaling", "run", "quickstart", *small, "--ranks", "1,2", "--rounds", "3", "-o", folder],
    check=True,
)
records = [f"{folder}/strong-1.h5", f"{folder}/strong-2.h5"]
subprocess.run([*nd, "scaling", "report", *records], check=True)
subprocess.run(
    [
        *nd,
        "scaling",
        "predict",
        records[0],
        "--ranks",
        "64",
        "--clients",
        "4096",
        "--network",
        "hdr100",
    ],
    check=True,
)
