"""The way of installing: an editable install must not be hidden by a folder of the same name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

from mpi_ntkdfl.runtime import identity
from tests.conftest import ROOT


def test_a_clone_named_like_the_package_hides_no_editable_install(tmp_path):
    """From its parent folder, as after `git clone REPOSITORY mpi_ntkdfl`."""
    pytest.importorskip("setuptools")
    clone, wheels, installed = tmp_path / "mpi_ntkdfl", tmp_path / "wheels", tmp_path / "installed"
    (clone / "mpi_ntkdfl").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "mpi_ntkdfl/__init__.py"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta as b; b.build_editable(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, wheels], cwd=clone, check=True, capture_output=True
    )
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    look = (
        "import site, sys; site.addsitedir(sys.argv[1]); import mpi_ntkdfl as m; print(m.__file__)"
    )
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # Without other installs of this environment; -c has the working folder on the path.
    said = subprocess.run(
        [sys.executable, "-S", "-c", look, installed],
        cwd=tmp_path,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == str(clone / "mpi_ntkdfl" / "__init__.py")


def test_what_is_installed_from_git_tells_its_commit_and_carries_the_jobs(tmp_path):
    pytest.importorskip("setuptools")
    clone, made = tmp_path / "clone", tmp_path / "made"
    (clone / "mpi_ntkdfl").mkdir(parents=True)
    made.mkdir()
    for name in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "MANIFEST.in",
        "mpi_ntkdfl/__init__.py",
    ):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / "jobs", clone / "jobs")
    (clone / "mpi_ntkdfl" / "jobs").symlink_to("../jobs")
    git = ["git", "-C", clone, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    build = (
        "import sys; from setuptools import build_meta as b; folder = sys.argv[1];"
        "b.build_sdist(folder); b.build_wheel(folder)"
    )
    subprocess.run([sys.executable, "-c", build, made], cwd=clone, check=True, capture_output=True)
    wheel = zipfile.ZipFile(*made.glob("*.whl"))
    with tarfile.open(*made.glob("*.tar.gz")) as sources:
        sources.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("mpi_ntkdfl-*")
    assert wheel.read("mpi_ntkdfl/COMMIT").decode() == head.stdout
    assert (unpacked / "mpi_ntkdfl" / "COMMIT").read_text() == head.stdout
    for name in ("configs/nodes-32.yaml", "apptainer.def", "README.md", "run_cpu.sbatch"):
        assert wheel.read(f"mpi_ntkdfl/jobs/{name}") == (ROOT / "jobs" / name).read_bytes()
        assert (unpacked / "mpi_ntkdfl" / "jobs" / name).is_file()
    installed = tmp_path / "installed"
    wheel.extractall(installed)
    assert identity.commit(installed / "mpi_ntkdfl") == head.stdout.strip()


def test_conda_gets_the_lower_bounds_of_setup():
    setup = (ROOT / "setup.py").read_text()
    required = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)[1]
    names = {"pytorch": "torch"}
    conda = {
        names.get(each.partition(">=")[0], each.partition(">=")[0]): each.partition(">=")[2]
        for each in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(each, str) and ">=" in each
    }
    assert conda.pop("python") == re.search(r'python_requires=">=(.*?)"', setup)[1]
    pip = dict(re.findall(r'"([\w-]+)>=([\w.]+)"', required.lower()))
    assert conda == pip
