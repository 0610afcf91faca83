"""The batch scripts in a Slurm of three hosts: which ranks run where. Ranks only say their host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

# In place of Python: probes run, `scaling run` starts its ranks, and ranks say their host.
STAND_IN = f"""#!/bin/sh
case "$*" in
  -c*) exec {sys.executable} "$@" ;;
  *"scaling run"*) exec {sys.executable} -c '
import subprocess, sys
from pathlib import Path
from mpi_ntkdfl.runtime.launching import Launch, launcher_words
words = launcher_words(sys.argv[-1])
for ranks in map(int, sys.argv[sys.argv.index("--ranks") + 1].split(",")):
    started = Launch(words, ranks).command(Path("source"), Path("record"))
    print(ranks, flush=True)
    subprocess.run([*started[: started.index(sys.executable)], "hostname"], check=True)
' "$@" ;;
  *"scaling report"*) ;;
  *) hostname ;;
esac
"""


def submit(cluster, script, *words, **variables):
    """The exit code of a job and the lines that it said."""
    stand_in = cluster.folder / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    own = {"PYTHON": str(stand_in), "RUNS": str(cluster.folder), "JOBS": str(ROOT / "jobs")}
    said = cluster.folder / "said"
    said.unlink(missing_ok=True)
    told = ("sbatch", "--wait", "-o", said, *words, ROOT / f"jobs/{script}.sbatch", "quickstart")
    done = cluster.run("n1", *told, variables={**own, **variables}, limit=120)
    lines = [
        s for s in said.read_text().splitlines() if "cpu binding" not in s
    ]  # not in this Slurm
    return done.returncode, lines


@pytest.mark.parametrize("tasks", [1, 2])
def test_nodes_times_tasks_per_node_run(cluster, tasks):
    """By srun, which two processes on one node would not tell where nodes have one task each."""
    shape = ("--nodes=3", f"--ntasks-per-node={tasks}")
    code, (first, *hosts) = submit(cluster, "run_cpu", *shape)
    assert code == 0, (first, hosts)
    assert f"{3 * tasks} ranks on 3 nodes by srun --mpi=pmi2" in first
    # On a busy machine srun says that a step waits for the one before it to end.
    hosts = [line for line in hosts if not line.startswith("srun: ")]
    assert sorted(hosts) == sorted(["n1", "n2", "n3"] * tasks)


def test_other_tasks_than_nodes_times_tasks_per_node_are_refused(cluster):
    shape = ("--nodes=3", "--ntasks-per-node=2", "--ntasks=3")
    code, said = submit(cluster, "run_cpu", *shape)
    assert code == 2
    assert "launch.sh: 3 nodes x 2 tasks per node are 6 ranks, but --ntasks=3" in said[0]


@pytest.mark.parametrize("launcher", ["", str(Path(sys.executable).with_name("mpiexec"))])
def test_scaling_fills_nodes_up_to_their_tasks(cluster, launcher):
    """`--exclusive`, where srun by itself would put 4 ranks on a node of 4 CPUs."""
    shape = ("--exclusive", "--nodes=3", "--ntasks-per-node=2")
    code, said = submit(cluster, "scaling_weak", *shape, COUNTS="1,4", LAUNCHER=launcher)
    assert code == 0, said
    assert not [line for line in said if "honor" in line]
    one, four = said.index("1"), said.index("4")
    assert len(said[one + 1 : four]) == 1
    hosts = said[four + 1 :]
    assert len(hosts) == 4
    assert {hosts.count(host) for host in hosts} == {2}
