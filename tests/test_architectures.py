"""Runs of networks of torch: the same bits on any ranks, after a resume, and with little memory."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import h5py
import pytest

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.planning.plan import make_plan
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime.errors import InputError
from tests import modules
from tests.conftest import MANY
from tests.test_mpi import assert_same_bits

SMALL = (
    "clients=6",
    "topology.degree=3",
    "rounds=2",
    "partition.samples=8",
    "evaluation.clients=false",
)
MODELS = {
    "cnn": "model={name: cnn, channels: [2, 3], hidden: [4]}",
    "resnet": "model={name: resnet, width: 2}",
    "transformer": "model={name: transformer, layers: 1, heads: 2, width: 4}",
    "plugin": "model={name: plugin, network: small-pictures}",
}
QUICK = {name: "algorithm={name: %s, epochs: 1}" % name for name in METHODS} | {  # noqa: UP031
    "ntk-dfl": "algorithm={name: ntk-dfl, taus: [5, 20]}",
    "dense": "algorithm={name: ntk-dfl, taus: [5, 20], jacobian: dense}",
    "spark-style": "algorithm={name: spark-style, taus: [5, 20]}",
    "ntk-fl": "algorithm={name: ntk-fl, taus: [5, 20], clients_per_round: 3}",
    "average-gd": "algorithm={name: average-gd, taus: [2, 5], data: neighbourhood}",
}
OTHERS = [name for name in METHODS if name != "ntk-dfl"]
CASES = [
    *((network, "ntk-dfl") for network in MODELS),
    ("cnn", "dense"),
    *((list(MODELS)[place % len(MODELS)], name) for place, name in enumerate(OTHERS)),
]
"""NTK-DFL on every network, and the other methods on one network after another."""


def settings(network, method, limit=None):
    limited = [] if limit is None else [f"compute.memory_limit={limit}"]
    given = [*SMALL, MODELS[network], QUICK[method], *limited]
    return parse([*read_source("quickstart"), read_overrides(given)])


@cache
def first_round(network, method):
    return prepare(settings(network, method), 1).first


def planned(network, method, limit=None):
    first = first_round(network, method)
    if limit is not None:
        within = first.network.within(limit // first.dtype.itemsize)
        first = replace(first, config=settings(network, method, limit), network=within)
    return make_plan(first)


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


def test_the_limit_on_memory_also_bounds_the_gradients_of_a_kernel():
    free, little, much = (
        prepare(settings("resnet", "ntk-dfl", limit), 1).network for limit in (None, 2**20, 2**33)
    )
    assert 2 * little.memory(300) < free.memory(300)
    assert little.work.room == 3 * (2**20 // 4) // 8 < free.work.room < much.work.room


def test_the_limit_that_a_refusal_names_is_enough(monkeypatch):
    """A network with more memory holds more at once, so the number is not that of the refused limit."""
    named = []
    monkeypatch.setattr(
        "mpi_ntkdfl.planning.plan.readable", lambda nbytes: named.append(nbytes) or ""
    )
    with pytest.raises(InputError, match="must hold at least"):
        planned("resnet", "ntk-dfl", 1000)
    assert planned("resnet", "ntk-dfl", named[0])
    assert named[0] < 1.1 * smallest("resnet", "ntk-dfl")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_networks_have_the_same_bits_on_any_ranks_and_after_a_resume(tmp_path, mpirun):
    """Two ranks begin each run and three resume it; NTK-DFL has little memory."""
    limits = {case: smallest(*case) for case in CASES[: len(MODELS) + 1]}
    for network in MODELS:
        free = planned(network, "ntk-dfl")
        assert planned(network, "ntk-dfl", limits[network, "ntk-dfl"]).waves > free.waves == 1
    limits["cnn", "dense"] += 50_000
    slices = planned("cnn", "dense", limits["cnn", "dense"]).slices
    assert 1 < slices < planned("cnn", "dense").slices

    def words(kind, case, *more):
        given = [*SMALL, MODELS[case[0]], QUICK[case[1]]]
        if case in limits:
            given.append(f"compute.memory_limit={limits[case]}")
        path = str(tmp_path / f"{'-'.join(case)}-{kind}.h5")
        sets = [word for setting in (*given, *more[:1]) for word in ("--set", setting)]
        plugin = ["--plugin", modules.__file__]
        return ["run", "quickstart", *plugin, *sets, "-q", "-o", path, *more[1:]]

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
