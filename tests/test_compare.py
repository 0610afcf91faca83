"""Comparing runs: numbers worked out by hand, grouping, warnings, killed and damaged records."""

import csv
import functools
import json
import random

import h5py
import numpy as np
import pytest
import yaml

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.base import Needs
from mpi_ntkdfl.analysis import compare, compare_text, fairness, tables, traces
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.journal import facts
from mpi_ntkdfl.storage.record import Record, RoundRecord
from tests.test_cli import complaint, words
from tests.test_record import attributes

CLIENTS, RANKS = 4, 2
ACCURACY = (0.1, 0.5, 0.7, 0.8, 0.9)
"""Of the average, after 0, 1, ... rounds."""


@functools.cache
def known_attributes():
    """Of every record here; asking git for the commit takes longer than all the rest."""
    return attributes(*RANKS * ("a",))


def attributes_with(settings):
    """The attributes of a run whose configuration has these values of `section.key`."""
    config = yaml.safe_load(known_attributes()["config"])
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    text = yaml.safe_dump(config, sort_keys=False)
    about = {"config": text, "seed": config["seed"]}
    if (name := config["algorithm"]["name"]) in METHODS:
        about |= facts(METHODS[name], Needs())
    return known_attributes() | about


def shares(offsets, indices):
    return {"offsets": np.array(offsets), "indices": np.array(indices)}


def write(
    path, accuracy=ACCURACY, every=1, partition=((0, 1, 2, 3, 4), (3, 1, 0, 2)), scale=1, **settings
):
    """A record with known numbers. Keys of `settings` have `__` for the dot.

    After k rounds the average has `accuracy[k]`, client i has 0.1 i less. Round k, from 1, sends
    k * `scale` bytes of weights and 10 k of Jacobians, moves 100 k, and takes rank r 1 + r seconds, 50
    more in evaluation and recording.
    """
    rounds = len(accuracy) - 1
    changes = {"rounds": rounds, "evaluation.every": every}
    changes |= {key.replace("__", "."): value for key, value in settings.items()}
    record = Record(path)
    record.create(
        attributes_with(changes),
        CLIENTS,
        RANKS,
        shares(*partition),
    )
    for done in range(rounds + 1):
        value = accuracy[done]
        clients = value - 0.1 * np.arange(CLIENTS)
        own = np.array([0.5, 0.6, 0.7, 0.8])
        row = {"client-accuracy": clients, "client-loss": clients, "own-accuracy": own}
        row |= {"accuracy": np.array(value), "loss": np.array(2 - value)}
        row |= {"gradient-norm": np.array(1 / (1 + done)), "deviation": np.array(0.25 * done)}
        due = done % every == 0 or done == rounds
        traffic = np.zeros((2, len(TRAFFIC_PHASES)), int)
        traffic[0, TRAFFIC_PHASES.index("weights")] = scale * done
        traffic[0, TRAFFIC_PHASES.index("jacobians")] = 10 * done
        traffic[1, 0] = 100 * done
        seconds = np.zeros((RANKS, len(PHASES)))
        seconds[:, PHASES.index("evolve")] = 1 + np.arange(RANKS)
        seconds[0, PHASES.index("evaluate")] = 30
        seconds[0, PHASES.index("record")] = 20
        edges, flights = np.array([[0, 1]]), np.full((RANKS, 2), 0.5)
        over = RoundRecord(edges, traffic, seconds, 4 + done, flights) if done else None
        record.append(done, np.zeros(CLIENTS, int), row if due else None, over)
    return path


def read(*paths):
    return traces.read(paths)


def outcome(*paths, target=0.8):
    (found,) = compare.outcomes(read(*paths), [target])
    return found


def values(cost):
    spreads = (cost.spreads[name] for name in ("rounds", "bytes", "mpi-bytes", "seconds"))
    return [spread and spread.mean for spread in spreads]


def test_a_setting_that_an_earlier_record_lacks_had_its_default(tmp_path):
    """So seeds of two versions are one experiment."""
    new, old, other = (write(tmp_path / f"{n}.h5", seed=n) for n in range(3))
    for path, momentum in ((old, ""), (other, "  momentum: 0.5\n")):
        with h5py.File(path, "r+") as file:
            text = file.attrs["config"]
            assert text.count("  momentum: 0.0\n") == text.count("clients_every: 1\n") == 1
            text = text.replace("  momentum: 0.0\n", momentum)
            file.attrs["config"] = text.replace("  clients_every: 1\n", "")
    assert len(read(new, old)) == 1
    assert [group.label for group in read(old, other)] == ["momentum 0.0", "momentum 0.5"]


# -------------------------------------------------------------------------------------------- numbers


def test_numbers_to_the_target(tmp_path):
    """Three rounds: 11 (1 + 2 + 3) bytes, 100 (1 + 2 + 3) through MPI, the slower rank's 2 s each."""
    found = outcome(write(tmp_path / "a.h5"))
    assert values(found.costs[0]) == [3, 66, 600, 6]
    assert found.costs[0].reached == 1
    assert found.costs[0].spreads["busiest-bytes"].mean == 5 + 6 + 7
    assert found.costs[0].spreads["rounds"].sd is None


def test_numbers_at_the_end(tmp_path):
    found = outcome(write(tmp_path / "a.h5"))
    ends = {name: spread.mean for name, spread in found.ends.items() if spread}
    assert (ends["rounds"], ends["accuracy"], ends["deviation"]) == (4, 0.9, 1)
    assert ends["client-accuracy"] == pytest.approx(0.9 - 0.15)
    assert ends["bytes"] == 11 * (1 + 2 + 3 + 4)
    assert ends["own-accuracy"] == pytest.approx(0.65)
    text = compare_text.text([found])
    assert "busiest client" in text
    assert "own data" in text


def test_the_slowest_rank_may_change_from_round_to_round(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["time/seconds"][1, :, PHASES.index("kernel")] = [7, 0]
    assert outcome(path).costs[0].spreads["seconds"].mean == 2 + 8 + 2


def test_the_start_may_be_enough_and_costs_nothing(tmp_path):
    assert values(outcome(write(tmp_path / "a.h5"), target=0.05).costs[0]) == [0, 0, 0, 0]


def test_a_target_counts_when_it_is_met_exactly_and_first(tmp_path):
    path = write(tmp_path / "a.h5", accuracy=(0.1, 0.8, 0.3, 0.9))
    assert outcome(path, target=0.8).costs[0].spreads["rounds"].mean == 1
    assert outcome(path, target=0.81).costs[0].spreads["rounds"].mean == 3


def test_between_evaluations_the_next_evaluated_round_counts(tmp_path):
    """Round 3 reaches the target, but only 0, 2 and 4 are evaluated."""
    assert values(outcome(write(tmp_path / "a.h5", every=2)).costs[0]) == [4, 110, 1000, 8]


def test_older_records_lack_some(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["clients/own_accuracy"], file["traffic/busiest_bytes"]
    run = tables.read(path)
    assert not set(run.values) & {"own-accuracy", "busiest-bytes"}
    assert len(run.partition) == 64
    found = outcome(path)
    assert found.ends["own-accuracy"] is None
    assert found.costs[0].spreads["busiest-bytes"] is None
    text = compare_text.text([found])
    assert "busiest client" not in text
    assert "own data" not in text


def test_clients_that_were_not_evaluated(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["clients/accuracy"][:] = np.nan
    assert np.isnan(outcome(path).ends["client-accuracy"].mean)


# ------------------------------------------------------------------------------------------- grouping


def two_seeds(tmp_path):
    """Targets of 0.8 after 3 and after 1 rounds."""
    first = write(tmp_path / "a.h5", seed=0)
    accuracy = (0.2, 0.85, 0.86, 0.87, 0.88)
    other = (0, 1, 2, 3, 4), (0, 1, 2, 3)
    second = write(tmp_path / "b.h5", accuracy, seed=1, partition=other)
    return first, second


def test_seeds_become_mean_and_standard_deviation(tmp_path):
    found = outcome(*two_seeds(tmp_path))
    assert found.seeds == (0, 1)
    assert values(found.costs[0]) == [2, (66 + 11) / 2, (600 + 100) / 2, (6 + 2) / 2]
    assert found.costs[0].spreads["rounds"].sd == pytest.approx(np.sqrt(2))
    assert found.ends["accuracy"].mean == pytest.approx(0.89)
    assert found.ends["accuracy"].sd == pytest.approx(0.02 / np.sqrt(2))


def test_no_mean_if_one_seed_does_not_arrive(tmp_path):
    """A mean over those that arrive would flatter the method."""
    found = outcome(*two_seeds(tmp_path), target=0.89)
    assert found.costs[0].reached == 1
    assert values(found.costs[0]) == [None] * 4
    assert "- (1 of 2)" in compare_text.text([found])


def test_seed_partition_file_and_output_make_no_other_configuration(tmp_path):
    paths = [
        write(tmp_path / f"{n}.h5", seed=n, output__checkpoint_every=n + 1, dataset__root=f"/{n}")
        for n in range(3)
    ]
    for n, path in enumerate(paths):
        with h5py.File(path, "r+") as file:
            config = yaml.safe_load(file.attrs["config"])
            config["partition"] = {"kind": "file", "path": f"{n}.npz"}
            file.attrs["config"] = yaml.safe_dump(config)
    (group,) = read(*paths)
    assert [trace.seed for trace in group.traces] == [0, 1, 2]
    assert group.label == ""


def test_labels_say_what_differs_within_a_method(tmp_path):
    settings = [
        {"algorithm__lr": 0.01, "topology__degree": 3},
        {"algorithm__lr": 0.02, "topology__degree": 3},
        {"algorithm__lr": 0.02, "topology__degree": 1, "rounds": 9},
        {"algorithm__name": "d-psgd", "algorithm__momentum": 0.9},
    ]
    groups = read(*(write(tmp_path / f"{n}.h5", **each) for n, each in enumerate(settings)))
    assert [(group.method, group.label) for group in groups] == [
        ("ntk-dfl", "degree 3, lr 0.01"),
        ("ntk-dfl", "degree 3, lr 0.02"),
        ("ntk-dfl", "degree 1, lr 0.02"),
        ("d-psgd", ""),
    ]


def test_small_differences_are_told_only_if_nothing_else_is(tmp_path):
    paths = [write(tmp_path / f"{n}.h5", rounds=n) for n in (5, 6)]
    assert [group.label for group in read(*paths)] == ["5 rounds", "6 rounds"]


def test_runs_of_different_lengths_share_the_rounds_of_both(tmp_path):
    first, second = two_seeds(tmp_path)
    with h5py.File(second, "r+") as file:
        for name in ("rounds/round", "model/accuracy"):
            file[name].resize(3, axis=0)
    (group,) = read(first, second)
    assert group.shared_rounds().tolist() == [0, 1, 2]
    assert group.values("accuracy").tolist() == [[0.1, 0.5, 0.7], [0.2, 0.85, 0.86]]


# ------------------------------------------------------------------------------------------- warnings


def test_equal_runs_of_two_methods_are_a_fair_comparison(tmp_path):
    first = write(tmp_path / "a.h5")
    second = write(tmp_path / "b.h5", (0.1, 0.2, 0.3, 0.4, 0.5), algorithm__name="d-psgd")
    assert fairness.warnings(read(first, second)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"topology__degree": 1}, "topology.degree 3 / 1"),
        ({"topology__dynamic": False}, "topology.dynamic true / false"),
        ({"clients": 5}, "clients 4 / 5"),
        ({"dataset__name": "mnist"}, "dataset.name digits / mnist"),
        ({"partition__alpha": 0.5}, "partition.alpha 0.1 / 0.5"),
        ({"model__hidden": [7]}, "model.hidden [100] / [7]"),
        ({"every": 2}, "evaluation.every 1 / 2"),
        ({"compute__dtype": "float64"}, "compute.dtype float32 / float64"),
        ({"seed": 1}, "seeds 0 / 1"),
        (
            {"partition": ((0, 1, 2, 3, 4), (0, 1, 2, 3))},
            "the clients' samples under the same seed",
        ),
        (
            {"partition": ((0, 2, 2, 3, 4), (3, 1, 0, 2))},
            "the clients' samples under the same seed",
        ),
        ({"accuracy": (0.2, *ACCURACY[1:])}, "the accuracy at the start under the same seed"),
    ],
)
def test_what_makes_a_comparison_unfair_is_named(tmp_path, change, named):
    settings = {"algorithm__name": "d-psgd"} | change
    found = fairness.warnings(read(write(tmp_path / "a.h5"), write(tmp_path / "b.h5", **settings)))
    assert found == [f"no fair comparison, the runs differ in: {named}"]


def test_the_factor_that_is_compared_is_no_warning(tmp_path):
    """One method on two graphs, and two methods on each of them; not one of each on each."""
    paths = [
        write(tmp_path / f"{method}-{degree}.h5", algorithm__name=method, topology__degree=degree)
        for method in ("ntk-dfl", "d-psgd")
        for degree in (3, 1)
    ]
    assert fairness.warnings(read(*paths[:2])) == []
    assert fairness.warnings(read(*paths)) == []
    (warning,) = fairness.warnings(read(*paths[:3]))
    assert warning.endswith("differ in: topology.degree 3 / 1")
    shares = write(
        tmp_path / "c.h5", partition__alpha=0.5, partition=((0, 1, 2, 3, 4), (0, 1, 2, 3))
    )
    assert fairness.warnings(read(paths[0], shares)) == []


def test_runs_with_and_without_a_plugin(tmp_path):
    paths = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", algorithm__name="d-psgd")
    with h5py.File(paths[1], "r+") as file:
        file.attrs["plugins"] = json.dumps([{"name": "own.py", "sha256": "ab" * 32}])
    assert fairness.warnings(read(*paths)) == [
        "the runs were not computed by the same code: plugins no plugin / own.py abababababab"
    ]


def test_labels_are_words(tmp_path):
    paths = [write(tmp_path / f"{n}.h5", topology__dynamic=bool(n)) for n in (0, 1)]
    assert [group.label for group in read(*paths)] == ["static graph", "dynamic graph"]
    _, out, _ = words("show", paths[0])
    assert "topology:  regular, degree 3, static graph" in out


@pytest.mark.parametrize(
    "change", [{"evaluation__clients": False}, {"dataset__root": "/x"}, {"algorithm__lr": 1.0}]
)
def test_what_changes_no_compared_number_is_no_warning(tmp_path, change):
    settings = {"algorithm__name": "d-psgd"} | change
    paths = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", **settings)
    assert fairness.warnings(read(*paths)) == []


@pytest.mark.parametrize(
    ("attribute", "value", "named"),
    [
        ("ranks", 8, "ranks 2 / 8"),
        ("device", "cuda", "device cpu / cuda"),
        ("hosts", json.dumps(["a", "b"]), "hosts 1 / 2"),
    ],
)
def test_seconds_of_different_machines(tmp_path, attribute, value, named):
    paths = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", algorithm__name="d-psgd")
    with h5py.File(paths[1], "r+") as file:
        file.attrs[attribute] = value
    assert fairness.warnings(read(*paths)) == [f"seconds were not measured alike: {named}"]


def test_a_run_given_twice_and_a_run_cut_short(tmp_path):
    path = write(tmp_path / "a.h5")
    assert fairness.warnings(read(path, path)) == [
        f"{path}, {path} are one seed, and count as several"
    ]
    path = write(tmp_path / "b.h5", rounds=30)
    assert fairness.warnings(read(path)) == [f"{path} has 4 of 30 rounds"]


# ------------------------------------------------------------------------------------ killed, damaged


def test_rows_ahead_of_their_round_are_left_out(tmp_path):
    """A killed run may have the evaluation of a round on disk and not its traffic."""
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["traffic/mpi_bytes"].resize(3, axis=0)
    found = outcome(path, target=0.9)
    assert found.ends["rounds"].mean == 3
    assert found.costs[0].reached == 0


def test_a_run_that_never_started(tmp_path):
    path = tmp_path / "a.h5"
    Record(path).create(
        known_attributes(), CLIENTS, RANKS, {"offsets": np.arange(5), "indices": np.arange(4)}
    )
    found = outcome(path)
    assert found.costs[0].reached == 0
    assert found.ends["accuracy"] is None
    assert fairness.warnings(read(path)) == [f"{path} has 0 of 10 rounds"]
    assert compare_text.text([found])


@pytest.mark.parametrize("lacking", ["config", "hosts", "ranks", "device"])
def test_records_without_what_a_run_writes(tmp_path, lacking):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs[lacking]
    with pytest.raises(InputError, match=rf"a\.h5 is damaged .*{lacking}"):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", "seed: 1", "algorithm: {name: x}", "&", "a: {b: 1"])
def test_records_with_a_strange_configuration(tmp_path, text):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["config"] = text
    with pytest.raises(InputError, match="is damaged"):
        read(path)


@pytest.mark.parametrize("rounds", [[0, 1, 1, 2, 3], [0, 2, 1, 3, 4], [-1, 0, 1, 2, 3]])
def test_rounds_that_do_not_increase(tmp_path, rounds):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["rounds/round"][:] = rounds
    with pytest.raises(InputError, match="do not increase"):
        read(path)


def test_damaged_records_are_compared_or_refused(tmp_path):
    chance = random.Random(1)
    path = write(tmp_path / "a.h5")
    whole = path.read_bytes()
    used = [place for place, byte in enumerate(whole) if byte and place < whole.find(b"GCOL")]
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in chance.sample(used, chance.choice([1, 4, 30])):
            damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            groups = read(path)
            fairness.warnings(groups)
            assert compare_text.text(compare.outcomes(groups, [0.8]))
        except InputError as error:
            assert str(error)
            refused += 1
    assert refused


# ------------------------------------------------------------------------------------------- commands


def test_table(tmp_path):
    first, second = two_seeds(tmp_path)
    code, out, err = words("compare", first, second, "--target", 0.8, "--target", 0.89, "--runs")
    assert (code, err) == (0, "")
    table = [line.split("  ") for line in out.splitlines()]
    table = [[cell.strip() for cell in line if cell] for line in table]
    assert table[0] == ["to accuracy 0.8 of the average of all clients"]
    heads = ["method", "label", "seed", "rounds", "protocol", "busiest client", "MPI", "seconds"]
    assert table[1] == heads
    assert table[2] == [
        "ntk-dfl",
        "0,1",
        "2 +- 1.4",
        "38 B +- 39 B",
        "12 B +- 9 B",
        "350 B +- 354 B",
        "4.00 +- 2.83",
    ]
    assert table[3] == [str(first), "0", "3", "66 B", "18 B", "600 B", "6.00"]
    assert table[4] == [str(second), "1", "1", "11 B", "5 B", "100 B", "2.00"]
    assert table[6] == ["to accuracy 0.89 of the average of all clients"]
    assert table[8] == ["ntk-dfl", "0,1", "- (1 of 2)", "-", "-", "-", "-"]
    assert table[10] == [str(second), "1", "-", "-", "-", "-", "-"]
    assert table[12] == ["at the last evaluated round"]
    assert table[15][1:] == ["0", "4", "0.9000", "0.7500", "0.6500", "1.0000", "110 B"]


def test_the_default_target_is_that_of_the_paper(tmp_path):
    code, out, _ = words("compare", write(tmp_path / "a.h5"))
    assert code == 0
    assert out.startswith("to accuracy 0.85 of")


def test_warnings_leave_standard_output_alone(tmp_path):
    paths = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", topology__degree=1, clients=5)
    code, out, err = words("compare", *paths)
    assert code == 0
    assert (
        err
        == "warning: no fair comparison, the runs differ in: clients 4 / 5; topology.degree 3 / 1\n"
    )
    assert "warning" not in out


def test_csv_holds_every_number(tmp_path):
    table = tmp_path / "out.csv"
    first, second = two_seeds(tmp_path)
    words("compare", first, second, "--target", 0.8, "--target", 0.89, "--runs", "--csv", table)
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["file"], line["target"]) for line in lines] == [
        (name, target) for name in ("", str(first), str(second)) for target in ("0.8", "0.89")
    ]
    assert [line["reached"] for line in lines] == ["2", "1", "1", "1", "1", "0"]
    mean, never = lines[0], lines[5]
    assert (mean["seeds"], mean["runs"]) == ("0 1", "2")
    assert float(mean["rounds_to_target"]) == 2
    assert float(mean["rounds_to_target_sd"]) == pytest.approx(np.sqrt(2))
    assert float(mean["protocol_bytes_to_target"]) == 38.5
    assert float(mean["seconds_to_target"]) == 4
    assert float(mean["final_accuracy"]) == pytest.approx(0.89)
    assert {never[f"{n}_to_target"] for n in ("rounds", "protocol_bytes", "seconds")} == {""}
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".h5"] == ["out.csv"]


def test_csv_never_replaces_a_record(tmp_path):
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    assert "is never replaced" in complaint("compare", path, "--csv", path)
    assert path.read_bytes() == before


def test_bad_words(tmp_path):
    path = write(tmp_path / "a.h5")
    assert "no record at" in complaint("compare", tmp_path / "none.h5")
    assert "85" in complaint("compare", path, "--target", 85)
    assert "Missing argument" in complaint("compare")
    assert "cannot write" in complaint("compare", path, "--csv", tmp_path / "no" / "x.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "cannot write" in complaint("compare", path, "--csv", tmp_path / "folder.csv")
