"""Hosts for the tests in this folder; a skip with the reason where there can be none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import find_mpirun
from tests.nodes import lab


def _skip_without(*programs: str) -> None:
    if reason := lab.missing(*programs):
        pytest.skip(reason)
    if find_mpirun() is None:
        pytest.skip("needs mpirun: pip install 'mpi_ntkdfl[mpich]'")


@pytest.fixture(scope="session")
def hosts() -> Iterator[lab.Lab]:
    """Three hosts that all call themselves `web`, as containers may."""
    _skip_without()
    with (
        tempfile.TemporaryDirectory(prefix="lab-") as folder,
        lab.up(Path(folder), ("n1", "n2", "n3"), ("web",) * 3) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[lab.Lab]:
    """Three hosts with a Slurm."""
    _skip_without(*lab.SLURM)
    names = ("n1", "n2", "n3")
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        lab.prepare_slurm(Path(folder), names)
        with lab.up(Path(folder), names) as running:
            lab.start_slurm(running)
            yield running
