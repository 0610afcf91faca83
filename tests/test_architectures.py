"""Runs of the built-in networks: the same bits on any ranks, after a resume, and with little memory."""

from __future__ import annotations

import json
import os

import h5py
import pytest

from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime.errors import InputError
from tests.conftest import MANY
from tests.test_mpi import assert_same_bits

SMALL = ("clients=6", "topology.degree=3", "rounds=2", "partition.samples=12")
MODELS = {
    "cnn": "model={name: cnn, channels: [2, 3], hidden: [4]}",
    "resnet": "model={name: resnet, width: 2}",
    "transformer": "model={name: transformer, layers: 1, heads: 2, width: 4}",
}
METHODS = {
    "inputs": "algorithm={name: ntk-dfl, taus: [5, 20], jacobian: inputs}",
    "dense": "algorithm={name: ntk-dfl, taus: [5, 20], jacobian: dense}",
    "dfedavg": "algorithm={name: dfedavg, epochs: 1}",
    "dispfl": "algorithm={name: dispfl, epochs: 1}",
}
EVERY = [(n, m) for n in MODELS for m in METHODS if m != "dense" or n == "cnn"]
FEW = [("cnn", "dense"), ("cnn", "dispfl"), ("resnet", "inputs"), ("transformer", "dfedavg")]
CASES = EVERY if os.environ.get("ARCHITECTURES") == "all" else FEW
"""`ARCHITECTURES=all pytest tests/test_architectures.py` runs every method on every network."""


def planned(network, method, limit=None):
    given = [*SMALL, MODELS[network], METHODS[method]]
    limited = [] if limit is None else [f"compute.memory_limit={limit}"]
    return prepare(parse([*read_source("quickstart"), read_overrides([*given, *limited])]), 1).plan


def smallest(network, method):
    """The smallest limit on memory with which the run works, in bytes."""
    refused, works = 1, 2**31
    while works - refused > 1:
        limit = (refused + works) // 2
        try:
            planned(network, method, limit)
        except InputError as error:
            assert "must hold at least" in str(error)
            refused = limit
        else:
            works = limit
    return works


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_built_in_networks_have_the_same_bits_on_any_ranks_and_after_a_resume(tmp_path, mpirun):
    """Two ranks begin each run and three resume it; NTK-DFL has little memory."""
    limits = {}
    for network in {case[0] for case in CASES if case[1] == "inputs"}:
        limit = limits[network, "inputs"] = smallest(network, "inputs")
        assert planned(network, "inputs", limit).waves > planned(network, "inputs").waves == 1
    limit = limits["cnn", "dense"] = smallest("cnn", "dense") + 50_000
    assert 1 < planned("cnn", "dense", limit).slices < planned("cnn", "dense").slices

    def words(kind, case, *more):
        given = [*SMALL, MODELS[case[0]], METHODS[case[1]]]
        if case in limits:
            given.append(f"compute.memory_limit={limits[case]}")
        path = str(tmp_path / f"{'-'.join(case)}-{kind}.h5")
        sets = [word for setting in (*given, *more[:1]) for word in ("--set", setting)]
        return ["run", "quickstart", *sets, "-q", "-o", path, *more[1:]]

    launches = {
        1: [words("whole", case) for case in CASES],
        2: [words("parts", case, "rounds=1") for case in CASES],
        3: [words("parts", case, "rounds=2", "--resume") for case in CASES],
    }
    for ranks, lines in launches.items():
        done = mpirun(ranks, "-c", MANY, json.dumps(lines), limit=800)
        assert done.returncode == 0, done.stderr
    for case in CASES:
        one, other = (tmp_path / f"{'-'.join(case)}-{kind}.h5" for kind in ("whole", "parts"))
        assert_same_bits(one, other)
        with h5py.File(one) as file:
            assert file["model/loss"][-1] != file["model/loss"][0], case
