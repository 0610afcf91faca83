"""The way of installing: an editable install must not be hidden by a folder of the same name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import click
import pytest

from mpi_ntkdfl import presets
from mpi_ntkdfl.cli.main import cli
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


def test_what_is_installed_from_git_tells_its_commit_and_carries_jobs_and_headers(tmp_path):
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
    shutil.copytree(ROOT / "mpi_ntkdfl/ntk/_evolve", clone / "mpi_ntkdfl/ntk/_evolve")
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
    for header in (ROOT / "mpi_ntkdfl/ntk/_evolve").iterdir():
        inside = f"mpi_ntkdfl/ntk/_evolve/{header.name}"
        assert wheel.read(inside) == (unpacked / inside).read_bytes() == header.read_bytes()
    installed = tmp_path / "installed"
    wheel.extractall(installed)
    assert identity.commit(installed / "mpi_ntkdfl") == head.stdout.strip()


def test_the_container_file_fits_the_package():
    """No Apptainer is needed: what the file copies exists, and what it runs are existing commands."""
    text = (ROOT / "jobs" / "apptainer.def").read_text()
    parts = re.split(r"^%(\w+)\n", re.sub(r"^#.*\n", "", text, flags=re.M), flags=re.M)
    head, sections = parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(sections) == [
        *("arguments", "files", "post", "environment", "runscript", "test"),
    ], "sections of Apptainer"
    setup = (ROOT / "setup.py").read_text()
    python = re.search(r"^From: python:([\d.]+)-slim$", head, re.M)[1]
    page = (ROOT / "docs/how-to/install.md").read_text()
    tried = re.search(r"Python 3.11 to (3\.\d+) were tried", page)
    bound = re.search(r'python_requires=">=(.*?)"', setup)[1]
    versions = [tuple(map(int, each.split("."))) for each in (bound, python, tried[1])]
    assert versions == sorted(versions)
    copied = dict(line.split() for line in sections["files"].splitlines() if line.strip())
    for source, target in copied.items():
        assert (ROOT / source).exists()
        assert target == f"/opt/source/{source}"
    needed = set(re.findall(r'HERE / "([\w.]+?)[/"]', setup)) | {
        "setup.py",
        "constraints.txt",
        "jobs",
    }
    assert needed - {".git"} <= set(copied)
    assert re.findall(r"'\.\[(.*)\]'", sections["post"]) == ["mpich"]
    assert '"mpich": [' in setup
    assert sections["runscript"].split()[:4] == ["exec", "python", "-m", "mpi_ntkdfl"]
    words = sections["test"].split()
    assert words[:4] == ["python", "-m", "mpi_ntkdfl", "run"]
    assert words[4] in presets.names()
    run = cli.get_command(click.Context(cli), "run")
    run.make_parser(click.Context(run)).parse_args(words[4:])
    for name in ("post", "environment", "runscript", "test"):
        subprocess.run(["sh", "-n"], input=sections[name], text=True, check=True)
