"""Which version evolves a run: the same on all ranks, in the record, and when the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
import torch

from mpi_ntkdfl.algorithms.steps import evolves
from mpi_ntkdfl.cli.options import read_config
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.ntk import compiled, scheme
from mpi_ntkdfl.runtime.errors import Diverged, InputError
from mpi_ntkdfl.simulation import run
from mpi_ntkdfl.storage.outputs import Outputs
from tests.conftest import needs_compiled

SMALL = ("clients=4", "topology.degree=2", "partition.samples=12", "algorithm.taus=[5]")


def settings(*overrides: str) -> Config:
    return read_config("quickstart", (*SMALL, *overrides))


def recorded(outputs: Outputs) -> str:
    with h5py.File(outputs.record) as file:
        return str(json.loads(file.attrs["choices"]).get("evolution"))


class OneOfTwo(SoloWorld):
    """A rank beside one that has no compiled version."""

    def largest(self, value: float) -> float:
        return max(value, 1.0)


@needs_compiled
def test_all_ranks_take_the_version_that_all_have(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "a.h5")
    run(settings("rounds=1"), SoloWorld(), outputs)
    assert recorded(outputs).startswith("compiled: built for ")
    run(settings("rounds=1"), OneOfTwo(), outputs, "overwrite")
    assert recorded(outputs) == "tensor: another rank has no compiled version"


@needs_compiled
def test_a_run_goes_on_with_the_version_it_began_with(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "a.h5")
    run(settings("rounds=1", "compute.evolution=tensor"), SoloWorld(), outputs)
    before = outputs.record.read_bytes(), outputs.checkpoint.read_bytes()
    with pytest.raises(
        InputError, match="by the tensor version, .* --set compute.evolution=tensor"
    ):
        run(settings("rounds=2"), SoloWorld(), outputs, "resume")
    assert (outputs.record.read_bytes(), outputs.checkpoint.read_bytes()) == before
    run(settings("rounds=2", "compute.evolution=tensor"), SoloWorld(), outputs, "resume")
    assert recorded(outputs) == "tensor: compute.evolution is tensor"


def test_without_a_build_auto_takes_tensors(elsewhere: Path, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "a.h5")
    with pytest.raises(
        InputError, match="compute.evolution=compiled cannot be used: it was not built"
    ):
        run(settings("rounds=1", "compute.evolution=compiled"), SoloWorld(), outputs)
    assert not outputs.existing()
    run(settings("rounds=1"), SoloWorld(), outputs)
    assert recorded(outputs).startswith("tensor: it was not built")


def test_methods_that_do_not_evolve_make_no_choice() -> None:
    assert evolves(settings().algorithm)
    assert not evolves(settings("algorithm.loss=squared").algorithm)
    assert not evolves(read_config("paper-fashion-mnist-dfedavg", ()).algorithm)


@pytest.mark.parametrize("batch", ["null", "4"])
@pytest.mark.parametrize("version", ["tensor", pytest.param("compiled", marks=needs_compiled)])
def test_an_evolution_without_end_is_a_divergence(
    version: str, batch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.find(torch.float32)  # which is checked by evolutions that end
    monkeypatch.setattr(scheme, "MOST_TRIALS", 3)
    compiled._scheme.cache_clear()
    wanted = settings("rounds=1", f"compute.evolution={version}", f"compute.batch={batch}")
    with pytest.raises(Diverged, match="not done after 3 inner steps") as caught:
        run(wanted, SoloWorld(), Outputs(tmp_path / "b.h5"))
    compiled._scheme.cache_clear()
    assert {"round 0", "client 0"} <= set(caught.value.__notes__)
