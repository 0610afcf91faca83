"""Heart disease of four hospitals, and what is measured where there are two classes or sites."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

import mpi_ntkdfl as nd
from mpi_ntkdfl.config import dataset_settings
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.model import two_classes
from tests.conftest import MANY, examples
from tests.test_cli import answer

SITES = ("cleveland", "hungary", "switzerland", "va")


def load(**options):
    return sources.load(dataset_settings("heart-disease", **options))


def test_the_table_has_the_complete_rows_of_four_hospitals():
    got = load()
    both = np.concatenate([got.sites, got.test_sites])
    assert (got.site_names, got.classes) == (SITES, 2)
    assert np.bincount(both).tolist() == [303, 261, 46, 130]
    assert np.concatenate([got.train_labels, got.test_labels]).sum() == 383
    inputs = got.scaling.apply(got.train_inputs, np.float64)
    assert np.allclose(inputs.mean(axis=0), 0, atol=1e-9)
    assert np.allclose(inputs.std(axis=0), 1)
    # The scaling is measured on training rows only.
    assert not np.allclose(
        got.scaling.apply(got.test_inputs, np.float64).mean(axis=0), 0, atol=0.01
    )
    raw = load(one_hot=False, standardize="none")
    assert (got.shape, raw.shape) == ((13,), (10,))
    assert set(raw.train_inputs[:, 2]) == {1, 2, 3, 4}


@pytest.mark.parametrize("split", [0, 1])
def test_a_third_of_each_class_of_each_hospital_is_for_testing(split):
    got = load(split=split)
    for site in range(4):
        for label in (0, 1):
            test = ((got.test_sites == site) & (got.test_labels == label)).sum()
            train = ((got.sites == site) & (got.train_labels == label)).sum()
            assert abs(test - (test + train) / 3) <= 1.5
    rows = [set(map(bytes, part)) for part in (got.train_inputs, got.test_inputs)]
    assert not rows[0] & rows[1]
    assert not np.array_equal(load(split=2).test_inputs, got.test_inputs)


def test_the_licence_stands_beside_the_table():
    from importlib import resources

    told = resources.files("mpi_ntkdfl.data").joinpath("tables", "heart-disease.md").read_text()
    assert "CC BY 4.0" in told and "Janosi" in told and "Changes" in told


# ------------------------------------------------------------------------------------ two classes


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40))
def test_measures_of_two_classes_are_those_of_scikit_learn(pairs):
    chance = np.array([number / 8 for number, _ in pairs])
    labels = np.array([int(label) for _, label in pairs])
    said = (chance > 0.5).astype(int)
    rates = [(said == labels)[labels == label] for label in (1, 0)]
    for measure, rate in zip(
        (two_classes.sensitivity, two_classes.specificity), rates, strict=True
    ):
        assert measure(chance, labels) == (
            rate.mean() if len(rate) else pytest.approx(np.nan, nan_ok=True)
        )
    if len(set(labels)) == 2:
        assert two_classes.auc(chance, labels) == pytest.approx(
            reference.roc_auc_score(labels, chance)
        )
        expected = reference.balanced_accuracy_score(labels, said)
        assert two_classes.balanced_accuracy(chance, labels) == pytest.approx(expected)
    else:
        assert np.isnan(two_classes.auc(chance, labels))
        assert np.isnan(two_classes.balanced_accuracy(chance, labels))
    error = sum(
        abs((labels - chance)[np.minimum(np.floor(chance * 10), 9) == low].sum())
        for low in range(10)
    )
    assert two_classes.calibration_error(chance, labels) == pytest.approx(error / len(labels))


def test_chances_are_the_softmax_also_of_large_outputs():
    outputs = np.array([[0.0, 0.0], [1.0, 3.0], [2000.0, 0.0], [0.0, 2000.0]])
    expected = [0.5, 1 / (1 + np.exp(-2)), 0, 1]
    assert np.allclose(two_classes.probabilities(outputs), expected)


# -------------------------------------------------------------------------------------- the record


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("hospitals") / "run.h5"
    config = nd.load_config("hospitals-ring", rounds=2, algorithm={"name": "dfedavg", "epochs": 2})
    nd.run(config, path)
    return path


def test_every_number_of_the_record_is_computed_again_from_the_weights(record):
    data, run = load(), nd.open_record(record)
    test = data.scaling.apply(data.test_inputs, np.float64)

    def outputs(state):
        return test @ state["fc1.weight"].double().numpy().T + state["fc1.bias"].double().numpy()

    average, labels = outputs(run.average()), data.test_labels
    probability = two_classes.probabilities(average)
    with h5py.File(record) as file:
        assert json.loads(file.attrs["site_names"]) == list(SITES)
        cross = file["sites/client_accuracy"][-1]
        by_site = {name: each[-1] for name, each in file["sites"].items()}
        pooled = {name: each[-1] for name, each in file["binary"].items()}
    for name, value in pooled.items():
        measure = getattr(two_classes, name)
        assert value == pytest.approx(measure(probability, labels), abs=1e-5)
        for site in range(4):
            of = data.test_sites == site
            expected = measure(probability[of], labels[of])
            assert by_site[name][site] == pytest.approx(expected, abs=1e-5, nan_ok=True)
    for client in range(4):
        right = outputs(run.weights(client)).argmax(axis=1) == labels
        expected = [right[data.test_sites == site].mean() for site in range(4)]
        assert np.allclose(cross[client], expected)
    table = run.table()
    assert table["site-accuracy"][-1] == pytest.approx(by_site["accuracy"].mean())
    assert table["worst-site-accuracy"][-1] == by_site["accuracy"].min()
    # Switzerland has no healthy test patient: the mean is over the others.
    assert np.isnan(by_site["auc"]).tolist() == [False, False, True, False]
    assert table["site-auc"][-1] == pytest.approx(np.nanmean(by_site["auc"]))


def test_tables_and_figures_show_the_metrics_where_a_run_has_them(record, tmp_path):
    assert "sensitivity" in answer("show", record)
    assert "site-accuracy" in answer("compare", record)
    answer("plot", record, "-o", tmp_path / "a.svg", "--y", "site-auc", "--x", "rounds")
    config = nd.load_config("quickstart", rounds=1, clients=4, topology={"kind": "ring"})
    other = nd.run(config, tmp_path / "other.h5").path
    assert "auc" not in answer("compare", other)
    with h5py.File(other) as file:
        assert "binary" not in file and "sites" not in file
    conditional = [m for m in METRICS.values() if m.when]
    answer("compare", other, "--csv", tmp_path / "a.csv")
    head = (tmp_path / "a.csv").read_text().splitlines()[0]
    assert not any(metric.column in head for metric in conditional)


def contents(path):
    with h5py.File(path) as file:
        names = [
            f"{group}/{name}" for group in ("sites", "binary", "clients") for name in file[group]
        ]
        return {name: file[name][:] for name in names}


def test_resumed_with_the_same_bits(record, tmp_path):
    again = ("--set", "algorithm={name: dfedavg, epochs: 2}", "-q", "-o", tmp_path / "a.h5")
    answer("run", "hospitals-ring", "--set", "rounds=1", *again)
    answer("run", "hospitals-ring", "--set", "rounds=2", *again, "--resume")
    for name, values in contents(record).items():
        np.testing.assert_array_equal(values, contents(tmp_path / "a.h5")[name], err_msg=name)


@pytest.mark.slow
def test_three_ranks_have_the_same_bits(record, mpirun, tmp_path):
    words = ["run", "hospitals-ring", "--set", "rounds=2", "-q", "-o", f"{tmp_path}/3.h5"]
    words += ["--set", "algorithm={name: dfedavg, epochs: 2}"]
    done = mpirun(3, "-c", MANY, json.dumps([words]))
    assert done.returncode == 0, done.stdout + done.stderr
    for name, values in contents(record).items():
        np.testing.assert_array_equal(values, contents(tmp_path / "3.h5")[name], err_msg=name)
