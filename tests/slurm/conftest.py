"""One Slurm for all tests in this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[cluster.Cluster]:
    """A running Slurm; a skip with the reason where there can be none."""
    if reason := cluster.missing():
        pytest.skip(reason)
    # A socket's path must be short, which pytest's own folders are not everywhere.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        with cluster.started(Path(folder)) as running:
            yield running
