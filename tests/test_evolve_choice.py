"""Which version evolves or trains: the same on all ranks, in the record, and when the run goes on."""

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
from mpi_ntkdfl.model.mlp import compiled_training
from mpi_ntkdfl.ntk import compiled, scheme
from mpi_ntkdfl.runtime.errors import Diverged, InputError
from mpi_ntkdfl.simulation import run
from mpi_ntkdfl.storage.outputs import Outputs
from tests.conftest import needs_compiled

SMALL = ("clients=4", "topology.degree=2", "partition.samples=12")
ADDED = {
    "evolution": ("algorithm.taus=[5]",),
    "training": ("algorithm.name=dfedavg", "algorithm.epochs=1"),
}
BOTH = pytest.mark.parametrize(
    "setting",
    [
        pytest.param("evolution", marks=needs_compiled),
        pytest.param(
            "training",
            marks=pytest.mark.skipif(
                isinstance(compiled_training.find(), str), reason=str(compiled_training.find())
            ),
        ),
    ],
)


def settings(*overrides: str, of: str = "evolution") -> Config:
    return read_config("quickstart", (*SMALL, *ADDED[of], *overrides))


def recorded(outputs: Outputs, of: str = "evolution") -> str:
    with h5py.File(outputs.record) as file:
        name = "local training" if of == "training" else of
        return str(json.loads(file.attrs["choices"]).get(name))


class OneOfTwo(SoloWorld):
    """A rank beside one that has no compiled version."""

    def largest(self, value: float) -> float:
        return max(value, 1.0)


@BOTH
def test_all_ranks_take_the_version_that_all_have(setting: str, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "a.h5")
    run(settings("rounds=1", of=setting), SoloWorld(), outputs)
    assert recorded(outputs, setting).startswith("compiled: built for ")
    run(settings("rounds=1", of=setting), OneOfTwo(), outputs, "overwrite")
    assert recorded(outputs, setting) == "tensor: another rank has no compiled version"


@BOTH
def test_a_run_goes_on_with_the_version_it_began_with(setting: str, tmp_path: Path) -> None:
    outputs, tensor = Outputs(tmp_path / "a.h5"), f"compute.{setting}=tensor"
    run(settings("rounds=1", tensor, of=setting), SoloWorld(), outputs)
    before = outputs.record.read_bytes(), outputs.checkpoint.read_bytes()
    with pytest.raises(InputError, match=f"by the tensor version, .* --set {tensor}"):
        run(settings("rounds=2", of=setting), SoloWorld(), outputs, "resume")
    assert (outputs.record.read_bytes(), outputs.checkpoint.read_bytes()) == before
    run(settings("rounds=2", tensor, of=setting), SoloWorld(), outputs, "resume")
    assert recorded(outputs, setting) == f"tensor: compute.{setting} is tensor"


@pytest.mark.parametrize("setting", list(ADDED))
def test_without_a_build_auto_takes_tensors(setting: str, elsewhere: Path, tmp_path: Path) -> None:
    outputs, wanted = Outputs(tmp_path / "a.h5"), f"compute.{setting}=compiled"
    with pytest.raises(InputError, match=f"{wanted} cannot be used: it was not built"):
        run(settings("rounds=1", wanted, of=setting), SoloWorld(), outputs)
    assert not outputs.existing()
    run(settings("rounds=1", of=setting), SoloWorld(), outputs)
    assert recorded(outputs, setting).startswith("tensor: it was not built")


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
