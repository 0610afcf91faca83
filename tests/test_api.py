"""The Python interface: what `import mpi_ntkdfl` offers."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch

import mpi_ntkdfl as nd
from mpi_ntkdfl import api


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    config = nd.load_config(
        "quickstart",
        clients=6,
        rounds=2,
        partition={"samples": 30},
        topology={"degree": 3},
        algorithm={"taus": [20]},
    )
    return nd.run(config, tmp_path_factory.mktemp("api") / "new folder" / "a.h5")


def test_importing_the_package_loads_neither_torch_nor_mpi():
    code = "import sys, mpi_ntkdfl as nd; print({'torch', 'mpi4py', 'h5py'} & set(sys.modules), dir(nd))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("set()")
    assert "load_config" in told.stdout


@pytest.mark.parametrize("name", nd._HOMES)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(nd, name).__doc__
    assert name in dir(nd)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'open_recrod'"):
        nd.open_recrod  # noqa: B018


def test_examples_in_docstrings():
    assert doctest.testmod(api, globs={"load_config": nd.load_config}).failed == 0


def test_settings_by_keyword_are_those_of_the_command_line():
    config = nd.load_config("quickstart", algorithm={"lr": 0.02}, **{"topology.degree": 3})
    assert (config.algorithm.lr, config.algorithm.lr_decay, config.topology.degree) == (
        0.02,
        0.07,
        3,
    )
    assert nd.load_config(partition={"kind": "iid"}).partition.kind == "iid"
    with pytest.raises(nd.InputError, match="did you mean 'clients'"):
        nd.load_config(cleints=3)
    with pytest.raises(nd.InputError, match="contradicts"):
        nd.load_config(**{"clients": 3, "clients.more": 4})


def test_the_table_has_a_column_per_metric(record):
    table = record.table()
    assert table["rounds"].tolist() == [0, 1, 2]
    assert {"accuracy", "client-accuracy", "bytes", "seconds", "deviation"} <= set(table)
    assert all(column.shape == (3,) for column in table.values())
    np.testing.assert_allclose(table["client-accuracy"], record.clients("client-accuracy").mean(1))
    with pytest.raises(nd.InputError, match="did you mean 'client-accuracy'"):
        record.clients("client-acuracy")


def test_a_frame_has_the_same_columns(record):
    pandas = pytest.importorskip("pandas")
    frame = record.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame) == list(record.table())


def test_weights_are_state_dicts(record):
    every = [record.weights(client) for client in range(6)]
    for name, tensor in record.average().items():
        mean = torch.stack([each[name].double() for each in every]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-6)
    with pytest.raises(nd.InputError, match="clients are 0 to 5"):
        record.weights(6)


def test_a_link_stands_for_the_run_that_it_names(record, tmp_path):
    link = tmp_path / "link.h5"
    link.symlink_to(record.path)
    linked = nd.open_record(link).average()
    for name, tensor in record.average().items():
        assert torch.equal(tensor, linked[name])
    nd.run(record.config, link, resume=True)
    assert link.is_symlink()


def test_a_record_is_opened_with_its_configuration(record):
    again = nd.open_record(record.path)
    assert again.config == record.config
    assert repr(again).endswith("2 of 2 rounds>")
    with pytest.raises(nd.InputError, match="no record at"):
        nd.open_record(record.path.with_name("b.h5"))


def test_a_run_replaces_nothing_unless_told_and_leaves_the_threads_alone(record):
    torch.set_num_threads(2)
    seen = []
    try:
        with pytest.raises(nd.InputError, match="exists"):
            nd.run(record.config, record.path)
        longer = record.config.model_copy(update={"rounds": 3})
        assert (
            len(nd.run(longer, record.path, resume=True, callbacks=[seen.append]).table()["rounds"])
            == 4
        )
        assert [progress.done for progress in seen] == [3]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    with pytest.raises(nd.InputError, match="got 'quickstart'; make one with load_config"):
        nd.run("quickstart", record.path.with_name("b.h5"))
    with pytest.raises(nd.InputError, match="cannot be used together"):
        nd.run(record.config, record.path, overwrite=True, resume=True)
