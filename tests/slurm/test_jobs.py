"""The batch scripts in a real Slurm: the same bits as mpirun, time limits, arrays, cancelled jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from mpi_ntkdfl.storage.outputs import Outputs
from tests.conftest import ROOT, find_mpirun
from tests.test_mpi import assert_same_bits

pytestmark = pytest.mark.slow

JOBS = ROOT / "jobs"
TINY = [
    "quickstart",
    *(
        word
        for setting in ("clients=6", "topology.degree=3", "algorithm.taus=[5, 10]", "rounds=20")
        for word in ("--set", setting)
    ),
    "-q",
]
# Starting ranks takes many seconds on a busy machine.
LIMIT = 200


class Desk:
    """Submits scripts from a folder that has `jobs/`, as a user would."""

    def __init__(self, slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        (folder / "jobs").symlink_to(JOBS)

    def submit(self, *words: object, **variables: str) -> str:
        own = {"PYTHON": sys.executable, "RUNS": str(self.folder / "runs"), "LAUNCHER": ""}
        return self.slurm.call(
            "sbatch", "--parsable", *words, folder=self.folder, variables={**own, **variables}
        )

    def said(self, name: str) -> str:
        return (self.folder / name).read_text()

    def finish(self, job: str, name: str, limit: float = LIMIT) -> str:
        """Waits for the job's good end and returns its output."""
        state = self.slurm.wait(job, limit=limit)
        assert state == "COMPLETED", (state, self.said(name))
        return self.said(name)


@pytest.fixture
def desk(slurm, tmp_path):
    return Desk(slurm, tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, mpirun):
    """The record of TINY by plain mpirun, never interrupted."""
    record = tmp_path_factory.mktemp("reference") / "run.h5"
    done = mpirun(2, "-m", "mpi_ntkdfl", "run", *TINY, "-o", record)
    assert done.returncode == 0, done.stderr
    return record


def launchers():
    """By name what to ask the scripts for; empty lets them find one."""
    return {"srun": "", "mpiexec": str(Path(find_mpirun() or "").with_name("mpiexec"))}


@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
def test_run_cpu_gives_the_bits_of_mpirun(desk, reference, launcher):
    words = ("-o", "out", "jobs/run_cpu.sbatch", *TINY, "-o", "run.h5")
    said = desk.finish(desk.submit(*words, LAUNCHER=launchers()[launcher]), "out")
    assert re.search(rf"4 ranks on 1 nodes by \S*{launcher}", said)
    assert_same_bits(reference, desk.folder / "run.h5")
    with h5py.File(desk.folder / "run.h5") as file:
        assert file.attrs["ranks"] == 4


def test_a_job_at_its_time_limit_requeues_itself_and_ends_with_the_same_bits(desk, reference):
    """Slurm looks at limits every 30 s and warns up to 60 s early: here 25 to 55 s after the start."""
    limit = ("--time=1", "--signal=B:USR1@5")
    slow = {"PYTHON": str(Path(__file__).with_name("slow_python")), "TEST_PYTHON": sys.executable}
    job = desk.submit("-o", "out", "-n", 2, *limit, "jobs/run_cpu.sbatch", *TINY, **slow)
    said = desk.finish(job, "out")
    assert f"job {job}: unfinished, requeued" in said
    assert f"job {job}, start 2: 2 ranks" in said
    record = desk.folder / f"runs/run_cpu-{job}.h5"
    assert_same_bits(reference, record)
    with h5py.File(record) as file:
        rounds = [again["round"] for again in json.loads(file.attrs["resumed"])]
    assert rounds
    assert 0 < max(rounds) < 20


def test_restarts_are_bounded(desk):
    done = subprocess.run(
        ["bash", "-c", f". {JOBS}/launch.sh; supervise bash -c 'exit 75'"],
        env={
            "PATH": os.environ["PATH"],
            "LAUNCHER": "none",
            "PYTHON": "none",
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NAME": "x",
            "SLURM_NTASKS": "1",
            "SLURM_RESTART_COUNT": "3",
            "MAX_RESTARTS": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75
    assert "not requeued after 3 restarts" in done.stderr


def test_a_study_as_an_array_of_6_tasks(desk):
    small = ("--set", "clients=6", "--set", "topology.degree=3", "--set", "rounds=1")
    study = ("starts", "--scale", "small", "--seeds", 1, *small, "-o", "study")
    script = ("--array=0-5", "--ntasks-per-node=1", "-o", "out-%a", "jobs/study_array.sbatch")
    job = desk.submit(*script, *study)
    assert desk.slurm.wait(job, limit=LIMIT) == "COMPLETED"
    said = [desk.said(f"out-{task}") for task in range(6)]
    assert all(" 0 failed" in each for each in said)
    assert sum(int(re.search(r"^(\d+) done", each, re.MULTILINE)[1]) for each in said) == 4


def test_scancel_leaves_files_that_are_read_and_resumed(desk, reference, mpirun):
    slow = {"PYTHON": str(Path(__file__).with_name("slow_python")), "TEST_PYTHON": sys.executable}
    job = desk.submit("-o", "out", "-n", 2, "jobs/run_cpu.sbatch", *TINY, **slow)
    record = desk.folder / f"runs/run_cpu-{job}.h5"
    deadline = time.monotonic() + LIMIT
    while not Outputs(record).checkpoint.exists():
        assert time.monotonic() < deadline, desk.said("out")
        time.sleep(0.2)
    desk.slurm.call("scancel", job)
    assert desk.slurm.wait(job) == "CANCELLED"
    assert "requeued" not in desk.said("out")
    with h5py.File(record) as file:
        assert 0 < len(file["topology/offsets"]) - 1 < 20
    done = mpirun(3, "-m", "mpi_ntkdfl", "run", *TINY, "-o", record, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_bits(reference, record)


def test_the_gpu_script_asks_for_gpus(desk, reference):
    """GPUs that are names only: what the script asks for and passes on, computed on the CPU."""
    words = ("-o", "out", "--ntasks-per-node=2", "jobs/run_gpu.sbatch", *TINY, "-o", "run.h5")
    job = desk.submit(*words, "--set", "compute.device=cpu")
    assert "gres:gpu:4" in desk.slurm.call("scontrol", "show", "job", job)
    desk.finish(job, "out")
    assert_same_bits(reference, desk.folder / "run.h5")


def test_submit_makes_a_job_that_runs(desk, reference):
    words = ("--ranks", 2, "--time", "0:10:00", "-o", "my run.h5", "--submit")
    source = [word for word in TINY if word != "-q"]
    done = desk.slurm.try_call(
        *(sys.executable, "-m", "mpi_ntkdfl", "submit", *source, *words), folder=desk.folder
    )
    assert done.returncode == 0, done.stderr
    job = re.fullmatch(r"submitted job (\d+)\n", done.stdout)[1]
    desk.finish(job, f"quickstart-{job}.out")
    assert_same_bits(reference, desk.folder / "my run.h5")


def test_srun_without_pmi_is_refused_with_the_way_out(desk):
    """Unconnected single processes: every one of them stops, one of them says why."""
    words = ("srun", "--mpi=none", "-n", 3, sys.executable, "-m", "mpi_ntkdfl", "doctor")
    done = desk.slurm.try_call(*words, folder=desk.folder)
    assert done.returncode == 2
    assert done.stderr.count("error: the launcher started 3 processes but this MPI sees 1") == 1
    assert "--mpi=pmi2" in done.stderr
    assert done.stdout == ""


def test_more_tasks_than_cores(desk):
    job = desk.submit("-o", "out", "--ntasks-per-node=8", "jobs/doctor.sbatch")
    said = desk.finish(job, "out")
    assert "8 processes started, 8 ranks see each other" in said
    assert re.search(r"^  \S+: 8 ranks \(0-7\); .*cores per rank", said, re.MULTILINE)
