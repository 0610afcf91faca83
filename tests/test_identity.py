"""What ranks compare before they read anything: sources, versions, processor; and the commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from mpi_ntkdfl.comm.launcher import node_names
from mpi_ntkdfl.runtime import identity
from tests.conftest import ROOT, environment, launcher

SAME = {"sources": "a" * 64, "python": "3.12", "numpy": "2.4", "processor": "x86_64 avx2"}


@pytest.fixture
def copied(tmp_path):
    """A copy of the package's sources in a folder of its own."""
    ignored = shutil.ignore_patterns("jobs", "__pycache__")
    shutil.copytree(ROOT / "mpi_ntkdfl", tmp_path / "copy/mpi_ntkdfl", ignore=ignored)
    return tmp_path / "copy/mpi_ntkdfl"


def test_sources_are_known_by_names_and_contents(copied):
    same = identity.sources(identity.PACKAGE)
    assert identity.sources(copied) == same
    (copied / "notes.txt").write_text("no source")
    assert identity.sources(copied) == same
    (copied / "simulation.py").rename(copied / "simulation2.py")
    renamed = identity.sources(copied)
    with (copied / "ntk/update.py").open("a") as file:
        file.write("\n")
    assert len({same, renamed, identity.sources(copied)}) == 3


def test_another_package_is_refused_and_other_libraries_are_a_warning():
    hosts = ["n1", "n1", "n2"]
    assert identity.refusal(hosts, [SAME] * 3) is None
    assert identity.warnings(hosts, [SAME] * 3) == []
    refused = identity.refusal(hosts, [SAME, SAME, {**SAME, "sources": "b" * 64}])
    assert "sources aaaaaaaaaaaa on n1; sources bbbbbbbbbbbb on n2" in refused
    assert "an older version on n2" in identity.refusal(hosts, [SAME, SAME, None])
    other = [SAME, SAME, {**SAME, "numpy": "2.3"}]
    assert identity.refusal(hosts, other) is None
    assert identity.warnings(hosts, other) == [
        "numpy differs, so the last bits of the result may differ: 2.4 on n1; 2.3 on n2"
    ]
    assert identity.versions(hosts, other)["numpy"] == {"2.4": ["n1"], "2.3": ["n2"]}
    assert identity.versions(hosts, other)["python"] == "3.12"


def test_the_processor_is_told_by_maker_and_extensions(tmp_path):
    described = tmp_path / "cpuinfo"
    described.write_text("vendor_id : GenuineIntel\nflags : fpu avx512f avx2 fma\n\nflags : fpu\n")
    assert identity.processor(described).endswith("GenuineIntel avx2 fma avx512f")
    assert identity.processor(tmp_path / "none")


def test_the_commit_is_marked_when_files_differ_and_is_that_of_the_package(tmp_path, monkeypatch):
    def git(folder, *words):
        own = ("-c", "user.email=a@b", "-c", "user.name=n")
        told = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        subprocess.run(
            ["git", "-C", folder, *own, *words], check=True, env=told, capture_output=True
        )

    for name in ("mine", "other"):
        (tmp_path / name / "package").mkdir(parents=True)
        (tmp_path / name / "package/a.py").write_text(name)
        git(tmp_path / name, "init")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-m", "first")
    package = tmp_path / "mine/package"
    clean = identity.commit(package)
    assert len(clean) == 40
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    assert identity.commit(package) == clean
    (package.parent / "elsewhere").touch()
    assert identity.commit(package) == clean
    (package / "a.py").write_text("changed")
    assert identity.commit(package) == f"{clean[:12]}-dirty"
    assert identity.commit(tmp_path / "other") == "unknown"


def test_nodes_of_one_name_are_told_apart():
    """As containers: ranks 0 and 1 share memory, 2 and 3 do, all of them are called `web`."""
    assert node_names(["web"] * 4, [0, 0, 2, 2]) == ("web", "web", "web (2)", "web (2)")
    assert node_names(["a", "b", "a"], [0, 1, 0]) == ("a", "b", "a")


OLD = """
import socket
from mpi4py import MPI
MPI.COMM_WORLD.allgather(socket.gethostname())
MPI.COMM_WORLD.Barrier()
"""


@pytest.mark.parametrize("first", [True, False])
def test_a_rank_with_another_package_ends_the_job_with_one_message(mpirun, tmp_path, copied, first):
    """The other rank runs other sources, or a version that compares nothing and waits."""
    (copied / "ntk/update.py").write_text("")
    words = [sys.executable, "-m", "mpi_ntkdfl", "run", "quickstart"]
    other = ["env", f"PYTHONPATH={copied.parent}", *words] if first else [sys.executable, "-c", OLD]
    one, *rest = launcher(1)
    done = subprocess.run(
        [one, *rest, *other, ":", "-n", "1", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: every rank must run the same mpi_ntkdfl package") == 1
    assert not list(tmp_path.glob("*.h5"))
