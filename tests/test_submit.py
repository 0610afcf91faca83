"""Batch scripts without Slurm: what `submit` fills in and refuses, what scripts hold, lines of nodes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest

from mpi_ntkdfl import config
from mpi_ntkdfl.cli import batch_script as submit
from mpi_ntkdfl.cli import doctor
from mpi_ntkdfl.cli.options import read_config
from tests.conftest import ROOT
from tests.test_cli import answer, complaint

JOBS = ROOT / "jobs"
SCRIPTS = sorted(JOBS.glob("*.sbatch"))
NEEDED = ("submit", "quickstart", "--ranks", "8", "--time", "1:00:00")


def options(text):
    """The `#SBATCH` lines as sbatch reads them: up to the first command, a later one wins."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH --"):
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert key not in found, line
            found[key] = value
    return found


def test_what_is_asked_for_replaces_what_the_template_says():
    words = (
        "--nodes",
        "2",
        "--account",
        "abc",
        "--partition",
        "long",
        "--set",
        "compute.threads=3",
    )
    text = answer(*NEEDED, *words)
    found = options(text)
    wanted = {"nodes": "2", "ntasks": "8", "ntasks-per-node": "4", "cpus-per-task": "3"}
    wanted |= {"time": "1:00:00", "account": "abc", "partition": "long", "job-name": "quickstart"}
    assert found | wanted == found
    assert found["signal"] == "B:USR1@120"
    assert "gpus-per-node" not in found
    assert "CHANGE_ME" not in text


def test_without_an_account_the_line_to_change_stays():
    assert "##SBATCH --account=CHANGE_ME" in answer(*NEEDED)


def test_gpus_choose_the_gpu_script():
    text = answer(*NEEDED, "--gpus", "4")
    assert options(text)["gpus-per-node"] == "4"
    assert "compute.device=cuda" in text


def test_the_words_survive_the_shell(tmp_path):
    """The printed script, run by bash with a function in place of the launcher."""
    nasty = "topology={kind: file, path: 'a b; $(touch x) `y`.txt'}"
    path = tmp_path / "it's mine.yaml"
    path.write_text("base: quickstart\n")
    request = submit.Request(
        path.stem, (str(path), "--set", nasty, "-o", "a b.h5"), 1, 2, 1, 0, "1:00:00", None, None
    )
    text = submit.script("run_cpu", request)
    assert options(text)["job-name"] == "it_s_mine"
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (line,) = (line for line in text.splitlines() if line.startswith("set -- "))
    shown = subprocess.run(
        ["bash", "-c", f"{line}; printf '%s\\n' \"$@\""], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == list(request.words)


def test_the_printed_script_stands_alone():
    text = answer(*NEEDED)
    assert (JOBS / "launch.sh").read_text().strip() in text
    assert "SLURM_SUBMIT_DIR" not in text
    assert f"PYTHON:-{shlex.quote(sys.executable)}" in text


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "mine.sh"
    path.write_text('#!/bin/sh\n#SBATCH --qos=x\n#SBATCH --time=9\n\nmy_launcher run "$@"\n')
    text = answer(*NEEDED, "--template", path)
    assert options(text)["qos"] == "x"
    assert options(text)["time"] == "1:00:00"
    assert text.index("set -- quickstart") < text.index("my_launcher")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", "3"), "multiple of --nodes"),
        (("--ranks", "33"), "33"),
        (("--time", "90m"), "H:MM:SS"),
        (("--time", "0:02:00"), "120 s"),
        (("--account", "a b"), "--account"),
        (("--partition", "x\n#SBATCH --exclusive"), "--partition"),
        (("--template", "missing.sh"), "run_cpu, run_gpu"),
        (("--template", "run_gpu"), "--gpus"),
        (("--set", "rounds=0"), "rounds"),
        (("--set", "dataset={name: mnist, root: /nowhere}"), "/nowhere"),
    ],
)
def test_refused(words, message):
    assert message in complaint(*NEEDED, *words)


def test_submitting_where_there_is_no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "login node" in complaint(*NEEDED, "--submit")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_failure_and_say_what_they_cost(path):
    text = path.read_text()
    header, _, rest = text.partition("set -euo pipefail\n")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "##SBATCH --account=CHANGE_ME" in header
    assert "# Cost: " in header
    assert "ried" in header
    assert '. "${JOBS:-$SLURM_SUBMIT_DIR/jobs}/launch.sh"' in rest
    assert options(header)["time"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck():
    files = [*SCRIPTS, JOBS / "launch.sh", ROOT / ".ci/run", ROOT / "tests/slurm/slow_python"]
    done = subprocess.run(
        ["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16, 32])
def test_configurations_grow_with_the_nodes(nodes):
    found = read_config(str(JOBS / f"configs/nodes-{nodes}.yaml"), ())
    paper = read_config("paper-fashion-mnist", ())
    assert found.clients == 300 * nodes
    assert (found.rounds, found.topology, found.model) == (
        paper.rounds,
        paper.topology,
        paper.model,
    )
    assert found.partition.samples in (200, None)
    assert isinstance(found, config.Config)


def rank(**changes):
    given = {"gpus": (), "device": "cpu", "cores": (0, 1), "threads": "1", "evolution": "none"}
    return doctor.Rank(**(given | changes))


def test_a_line_a_node():
    hosts = ("a", "a", "b", "b", "a")
    card = {"gpus": ("H", "H")}
    ranks = [
        *(rank(), rank(cores=(2,)), rank(**card, device="cuda:0"), rank(**card, device="cuda:1")),
        rank(cores=(3,)),
    ]
    one, other = (doctor.node_line(host, hosts, ranks) for host in "ab")
    assert one.startswith(
        "  a: 3 ranks (0-1, 4); 1 to 2 cores per rank, 4 in all; OMP_NUM_THREADS 1"
    )
    assert one.endswith("no GPU")
    assert other.endswith("2 GPUs per rank (H): 2 -> cuda:0, 3 -> cuda:1")
    assert "more ranks than cores" not in one
    assert "more ranks than cores" in doctor.node_line("a", ("a",) * 3, [rank()] * 3)
