"""The way of installing: an editable install must not be hidden by a folder of the same name."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

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
