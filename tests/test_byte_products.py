"""How images of bytes are multiplied: the processor decides, a measurement checks."""

from __future__ import annotations

import logging

import h5py
import pytest
import torch

from mpi_ntkdfl.cli.options import read_config
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.model import byte_products
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.simulation import run
from mpi_ntkdfl.storage.outputs import Outputs
from tests.conftest import needs_fashion


@pytest.fixture(autouse=True)
def _decided_anew(monkeypatch):
    """Without what an earlier test, or this one, has measured."""
    monkeypatch.setattr(byte_products, "measured", byte_products.measured.__wrapped__)


@pytest.mark.parametrize(
    ("vnni", "exact", "ratio", "taken", "reason"),
    [
        (True, True, 0.4, True, "faster than floats"),
        (False, True, 0.4, False, "VNNI"),
        (True, False, 0.4, False, "no exact products"),
        (True, True, 25.0, False, "25 times as long"),
    ],
)
def test_auto_takes_bytes_only_where_they_are_exact_and_fast(
    monkeypatch, vnni, exact, ratio, taken, reason
):
    monkeypatch.setattr(byte_products, "has_vnni", lambda: vnni)
    monkeypatch.setattr(byte_products, "multiplies_bytes", lambda: exact)
    monkeypatch.setattr(byte_products, "time_ratio", lambda: ratio)
    choice = byte_products.choose("auto")
    assert choice.taken is taken
    assert reason in choice.reason
    assert not byte_products.choose("off").taken
    if exact:
        assert byte_products.choose("on").taken
    else:
        with pytest.raises(InputError, match="exact products of bytes"):
            byte_products.choose("on")


def test_the_processor_is_asked_where_torch_does_not_say(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert not byte_products.has_vnni()
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    flags = byte_products.Path("/proc/cpuinfo").read_text()
    assert byte_products.has_vnni() == ("avx512_vnni" in flags or "avx_vnni" in flags)


@needs_fashion
def test_the_record_names_the_choice_and_resuming_with_another_warns(monkeypatch, tmp_path, caplog):
    outputs = Outputs(tmp_path / "x.h5")
    small = ("clients=6", "partition.samples=20", "algorithm.taus=[20]")
    off = read_config(
        "paper-fashion-mnist",
        (*small, "rounds=1", "compute.byte_products=off", "topology.degree=2"),
    )
    run(off, SoloWorld(), outputs)
    with h5py.File(outputs.record) as file:
        assert '"byte products": "off: compute.byte_products is off"' in file.attrs["choices"]
    again = read_config("paper-fashion-mnist", (*small, "rounds=2", "topology.degree=2"))
    monkeypatch.setattr(byte_products, "measured", lambda: byte_products.Choice(True, "a test"))
    if not byte_products.multiplies_bytes():
        pytest.skip("torch has no exact products of bytes on this processor")
    with caplog.at_level(logging.WARNING):
        run(again, SoloWorld(), outputs, "resume")
    assert "byte products: were off" in caplog.text
    assert "the last bits of the result may differ" in caplog.text
