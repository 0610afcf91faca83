"""Record and checkpoint: written and read back, half written, damaged, and never overwritten badly."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mpi_ntkdfl import config, presets
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.metrics import METRICS, recorded
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.runtime.hdf5 import reading
from mpi_ntkdfl.storage import checkpoint, growing, whole
from mpi_ntkdfl.storage.outputs import Outputs, choose, refuse
from mpi_ntkdfl.storage.record import (
    Record,
    RoundRecord,
    provenance,
    read_all,
)
from mpi_ntkdfl.storage.rows import Rows

CLIENTS, RANKS = 4, 3
LAYOUT = Layout({"fc1.weight": (3, 5), "fc1.bias": (3,)})
ALWAYS = [metric for metric in recorded() if not metric.when]
PARTITION = {
    "offsets": np.array([0, 2, 3, 5, 9]),
    "indices": np.array([4, 1, 0, 7, 7, 2, 3, 5, 6]),
}


def config_text():
    layers = [*presets.read_source("quickstart"), {"clients": CLIENTS, "topology": {"degree": 3}}]
    return config.parse(layers).to_yaml()


def evaluation(done):
    rows = np.arange(CLIENTS) / 10 + done / 100
    return {
        "client-accuracy": rows,
        "client-loss": rows + 1,
        "own-accuracy": rows + 2,
        "accuracy": np.array(0.5 + done / 10),
        "loss": np.array(2.0 - done / 10),
        "gradient-norm": np.array(0.25 * done),
        "deviation": np.array(0.125 * done),
    }


def round_record(done):
    edges = np.array([[0, 1], [1, 2], [2, 3]])[: done + 1]
    traffic = np.arange(2 * len(TRAFFIC_PHASES)).reshape(2, -1) + 10 * done
    flights = done * np.array([[4.0, 1.0], [5.0, 0.5], [6.0, 0.0]])
    seconds = np.full((RANKS, len(PHASES)), done / 4)
    return RoundRecord(edges, traffic, seconds, 7 * done, flights)


def attributes(*hosts):
    """What a run on `hosts` says of itself in its record."""
    world = SoloWorld()
    world.hosts, world.size, world.library = hosts, len(hosts), "Some MPI"
    return {"config": config_text(), "seed": 0, "data": "0", **provenance(world, "cpu", "2.0", {})}


def write_record(path, rounds=2):
    """A record as a run of `rounds` rounds leaves it."""
    record = Record(path)
    record.create(attributes("a", "a", "b"), CLIENTS, RANKS, PARTITION)
    record.append(0, np.zeros(CLIENTS, int), evaluation(0), None)
    for done in range(1, rounds + 1):
        record.append(done, np.full(CLIENTS, 100 * done), evaluation(done), round_record(done))
    return record


def write_checkpoint(path, done=2, rows=None):
    """A checkpoint of the record `path` in which client i's parameters are i + done / 10."""
    if rows is None:
        ids = np.arange(CLIENTS, dtype=np.float32)[:, None] + np.float32(done / 10)
        weights = np.repeat(ids, LAYOUT.size, axis=1)
        rows = [weights[:1], weights[1:]]
    params = Rows((CLIENTS, LAYOUT.size), np.dtype("f4"), rows)
    masks = np.arange(CLIENTS * 6).reshape(CLIENTS, 2, 3) % (done + 2) == 0
    arrays = {
        "params": params,
        "state/mask": Rows(masks.shape, masks.dtype, [masks[:3], masks[3:]]),
    }
    checkpoint.write(Outputs(path), checkpoint.Header(config_text(), LAYOUT, done), arrays)


def finished_run(folder: Path) -> Path:
    """The record of a run, with its checkpoint beside it."""
    path = folder / "run.h5"
    write_record(path)
    write_checkpoint(path)
    return path


# ------------------------------------------------------------------------------------------- record


def test_rows_come_back(tmp_path):
    write_record(tmp_path / "run.h5", rounds=3)
    run = tables.read(tmp_path / "run.h5")
    assert run.rounds.tolist() == [0, 1, 2, 3]
    for row, expected in enumerate(map(evaluation, range(4))):
        for name, values in expected.items():
            assert np.array_equal(run[name][row], values), name
        assert run["mean-tau"][row].tolist() == [100 * row] * CLIENTS
    for row, expected in enumerate(map(round_record, range(1, 4))):
        for name, values in expected.values.items():
            assert np.array_equal(run[name][row], values), name
    assert tuple(run.traffic_phases) == TRAFFIC_PHASES
    assert tuple(run.time_phases) == PHASES


def test_graphs_and_partition_come_back(tmp_path):
    write_record(tmp_path / "run.h5", rounds=2)
    with h5py.File(tmp_path / "run.h5", "r") as file:
        # The library crashes over damage in the index of a dataset that has two growing axes.
        stored = [file[each.dataset] for each in recorded() if each.dataset in file]
        assert {each.maxshape.count(None) for each in stored} == {1}
        edges, offsets = file["topology/edges"][:], file["topology/offsets"][:]
        found = [edges[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
        assert len(found) == 2
        for number, graph in enumerate(found, start=1):
            assert np.array_equal(graph, round_record(number).edges)
        assert np.array_equal(file["partition/offsets"][:], PARTITION["offsets"])
        assert np.array_equal(file["partition/indices"][:], PARTITION["indices"])


def test_rounds_without_evaluation_add_no_row(tmp_path):
    record = write_record(tmp_path / "run.h5", rounds=1)
    record.append(2, np.zeros(CLIENTS, int), None, round_record(2))
    record.append(3, np.zeros(CLIENTS, int), evaluation(3), round_record(3))
    run = tables.read(tmp_path / "run.h5")
    assert run.rounds.tolist() == [0, 1, 3]
    assert len(run["deviation"]) == len(run["client-accuracy"]) == 3
    assert len(run["mpi-bytes"]) == len(run["seconds"]) == 3


def values(path):
    """The bytes of every dataset."""
    every = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, each: every.update(
                {name: each[()].tobytes()} if isinstance(each, h5py.Dataset) else {}
            )
        )
    return every


def test_a_large_record_grows_in_place_and_readers_keep_what_they_opened(tmp_path, monkeypatch):
    copied, path = tmp_path / "whole.h5", tmp_path / "run.h5"
    write_record(copied, rounds=7)
    monkeypatch.setattr(growing, "IN_PLACE_FROM", 0)
    copies, copy = [], shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: copies.append(paths) or copy(*paths))

    def append(done):
        record.append(done, np.full(CLIENTS, 100 * done), evaluation(done), round_record(done))
        return len(copies)

    record = write_record(path, rounds=2)
    assert len(copies) == 1, "the first append has no twin"
    with h5py.File(path) as opened:
        assert append(3) == 1
        assert append(4) == 2, "the twin is open, so it must not change"
        assert opened["rounds/round"][:].tolist() == [0, 1, 2]
    assert append(5) == 2
    os.link(path, tmp_path / "backup.h5")
    backup = path.read_bytes()
    assert append(6) == 2
    assert append(7) == 3, "the twin has a second name"
    assert (tmp_path / "backup.h5").read_bytes() == backup
    assert values(path) == values(copied)
    record.close()
    assert {each.name for each in tmp_path.iterdir()} == {"whole.h5", "run.h5", "backup.h5"}


def test_a_new_record_replaces_the_old_one(tmp_path):
    write_record(tmp_path / "run.h5", rounds=3)
    write_record(tmp_path / "run.h5", rounds=1)
    assert tables.read(tmp_path / "run.h5").rounds.tolist() == [0, 1]


@pytest.mark.parametrize("by_round", [False, True])
def test_half_a_round_at_the_end_is_left_out(tmp_path, by_round):
    """Whichever of the datasets a killed run had extended."""
    names = [metric.dataset for metric in ALWAYS if metric.by_round == by_round]
    before = tables.read(write_record(tmp_path / "run.h5").path)
    for extended in range(1, len(names)):
        for some in (names[:extended], names[extended:]):
            path = tmp_path / "half.h5"
            shutil.copy(tmp_path / "run.h5", path)
            with h5py.File(path, "r+") as file:
                for name in some:
                    file[name].resize(len(file[name]) + 1, axis=0)
            run = tables.read(path)
            assert {name: len(run[name]) for name in run.values} == {
                name: len(before[name]) for name in before.values
            }
            assert tables.summary(run) == tables.summary(before)


def test_record_of_a_run_that_never_started(tmp_path):
    Record(tmp_path / "run.h5").create(attributes("a"), CLIENTS, 1, PARTITION)
    text = tables.summary(tables.read(tmp_path / "run.h5"))
    assert "not a single evaluation is finished" in text
    assert "no round is finished" in text


def test_summary_tells_what_ran(tmp_path):
    text = tables.summary(tables.read(write_record(tmp_path / "run.h5").path))
    for part in (
        *("ntk-dfl on digits, 4 clients, seed 0", "partition: dirichlet, alpha 0.1", "degree 3"),
        *("3 ranks on 2 host(s), cpu, torch 2.0, Some MPI", "    2   0.7000", "2 rounds"),
    ):
        assert part in text


def test_summary_tells_what_was_hidden(tmp_path):
    """Means over ranks, summed over the rounds: 1 + 2 times 5 s in flight, 0.5 s of them waited for."""
    path = write_record(tmp_path / "run.h5").path
    said = "exchange: 1.5 s waited for, 13.5 s in flight beneath computation (90 % hidden at most)"
    assert said in tables.summary(tables.read(path)).splitlines()
    with h5py.File(path, "r+") as file:
        file["time/in_flight"][0] = file["time/waited"][0] = np.nan
        file["time/in_flight"][1, 2] = file["time/waited"][1, 2] = np.nan
    said = "exchange: 1.5 s waited for, 7.5 s in flight beneath computation (83 % hidden at most)"
    assert said in tables.summary(tables.read(path)).splitlines()


@pytest.mark.parametrize("name", ["traffic/mpi_bytes", "time/in_flight"])
def test_summary_of_ranks_that_exchanged_nothing(tmp_path, name):
    """One process, or a method whose ranks only add up."""
    path = write_record(tmp_path / "run.h5").path
    with h5py.File(path, "r+") as file:
        file[name][...] = 0
        file["time/waited"][...] = 0
    assert "exchange:" not in tables.summary(tables.read(path))


def test_records_of_earlier_versions_go_on(tmp_path):
    """They lack the time of exchanges, NaN for the rounds that are done, and what datasets say."""
    record = write_record(tmp_path / "run.h5", rounds=2)
    with h5py.File(record.path, "r+") as file:
        del file["time/in_flight"], file["time/waited"]
        file.visititems(
            lambda _, item: [item.attrs.pop(key) for key in set(item.attrs) - {"phases"}]
        )
    run = tables.read(record.path)
    assert not run.has(METRICS["in-flight"])
    assert "exchange:" not in tables.summary(run)
    with reading(record.path) as file:
        read_all(file)
    record.resume(1, config.parse([]), provenance(SoloWorld(), "cpu", "2.0", {}))
    record.append(2, np.zeros(CLIENTS, int), evaluation(2), round_record(2))
    run = tables.read(record.path)
    assert run["in-flight"].shape == run["waited"].shape == (2, RANKS)
    assert np.isnan(run["in-flight"][0]).all()
    assert np.array_equal(run["waited"][1], round_record(2).flights[:, 1])
    assert "exchange: 1.0 s waited for, 9.0 s in flight" in tables.summary(run)
    with reading(record.path) as file:
        for metric in ALWAYS:
            assert file[metric.dataset].attrs["label"] == metric.label


@pytest.mark.parametrize("lacking", ["config", "hosts", "ranks", "commit"])
def test_summary_of_a_foreign_record(tmp_path, lacking):
    path = write_record(tmp_path / "run.h5").path
    with h5py.File(path, "r+") as file:
        del file.attrs[lacking]
    run = tables.read(path)
    with pytest.raises(InputError, match=lacking):
        tables.summary(run)


def test_record_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SimulationError, match="cannot write .*choose another -o"):
        Record(tmp_path / "file" / "run.h5").create({}, 1, 1, PARTITION)


# ------------------------------------------------------------------------------------- output names


def test_output_is_named_after_the_source_or_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose(Path("wanted.h5"), "quickstart", resume=False).record == Path("wanted.h5")
    assert choose(None, "quickstart", resume=True).record == Path("quickstart.h5")
    for taken in ("quickstart.h5", "quickstart-2.ckpt.h5", "quickstart-3.h5"):
        assert choose(None, "quickstart", False).record.name == taken.replace(".ckpt", "")
        Path(taken).touch()
        assert choose(None, "quickstart", True).record.name == taken.replace(".ckpt", "")
    assert choose(None, "quickstart", False).record == Path("quickstart-4.h5")


@pytest.mark.parametrize("taken", ["run.h5", "run.ckpt.h5", "run.ckpt-1.h5"])
def test_existing_output_is_refused_unless_told(tmp_path, taken):
    (tmp_path / taken).touch()
    with pytest.raises(InputError, match=f"{taken} exists; choose another -o, give --resume"):
        refuse(Outputs(tmp_path / "run.h5"), replace=False)
    refuse(Outputs(tmp_path / "run.h5"), replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_unusable_outputs_are_refused(tmp_path, replace):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "run.ckpt.h5").mkdir()
    for output in ("folder.h5", "run.h5", "n" * 300, "/proc/x.h5"):
        with pytest.raises(InputError):
            refuse(Outputs(tmp_path / output), replace)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.h5", "run.ckpt.h5"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("run.h5", "run.ckpt.h5"),
        ("a/run.h5", "a/run.ckpt.h5"),
        ("run", "run.ckpt.h5"),
        ("run.2.h5", "run.2.ckpt.h5"),
        (".", ".ckpt.h5"),
        ("/", "/.ckpt.h5"),
    ],
)
def test_checkpoint_lies_beside_its_record(record, expected):
    assert Outputs(Path(record)).checkpoint == Path(expected)


# --------------------------------------------------------------------------------------- checkpoint


def read_checkpoint(path):
    """Opens the checkpoint at `path`, whatever lies beside it."""
    with contextlib.closing(checkpoint.Checkpoint(path)) as found:
        return found.rows("params", range(found.clients))


def test_checkpoint_comes_back(tmp_path):
    write_checkpoint(tmp_path / "run.h5", done=7)
    with checkpoint.newest(Outputs(tmp_path / "run.h5")) as found:
        assert found.arrays == ["params", "state/mask"]
        params, mask = found.rows("params", range(1, 4)), found.rows("state/mask", range(2, 4))
        assert (params.dtype, mask.dtype) == (np.float32, np.bool_)
        expected = np.arange(1, 4, dtype=np.float32)[:, None] + np.float32(0.7)
        assert np.array_equal(params, np.repeat(expected, LAYOUT.size, axis=1))
        assert mask.nonzero()[0].size == sum(n % 9 == 0 for n in range(12, 24))
        assert found.layout == LAYOUT
        assert (found.round, found.config) == (7, config_text())
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt.h5"]


def test_the_last_two_checkpoints_are_kept(tmp_path):
    outputs = Outputs(tmp_path / "run.h5")
    for done in range(1, 5):
        write_checkpoint(outputs.record, done)
        kept = {outputs.checkpoint: done, outputs.former_checkpoint: done - 1}
        for path, expected in kept.items():
            assert path.exists() == (expected > 0)
            if expected:
                assert read_checkpoint(path)[0, 0] == np.float32(expected / 10)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "rows", ["raises", "too few", "too many", "misshapen"], ids=lambda rows: rows.replace(" ", "-")
)
@pytest.mark.parametrize("exists", [True, False])
def test_failing_checkpoint_leaves_the_old_one_alone(tmp_path, rows, exists):
    path = tmp_path / "run.h5"
    if exists:
        write_checkpoint(path, done=1)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def blocks():
        yield np.zeros((1, LAYOUT.size))
        if rows == "raises":
            raise RuntimeError("rank 1 is gone")
        if rows == "too many":
            yield np.zeros((CLIENTS, LAYOUT.size))
        if rows == "misshapen":
            yield np.zeros((CLIENTS - 1, 2 * LAYOUT.size))

    with pytest.raises((RuntimeError, AssertionError, TypeError, ValueError)):
        write_checkpoint(path, done=2, rows=blocks())
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_leftovers_of_a_killed_run_do_not_disturb(tmp_path):
    leftover = whole.temporary(tmp_path / "run.ckpt.h5")
    leftover.write_bytes(b"half a file")
    write_checkpoint(tmp_path / "run.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt.h5"]


@pytest.mark.parametrize(("client", "value"), [(0, 0.0), (3, 3.0), (None, 1.5)])
def test_export(tmp_path, client, value):
    write_checkpoint(tmp_path / "run.h5", done=0)
    with checkpoint.newest(Outputs(tmp_path / "run.h5")) as found:
        state = checkpoint.state_dict(found, client)
    assert {name: tuple(t.shape) for name, t in state.items()} == dict(LAYOUT.shapes)
    assert all(torch.equal(t, torch.full_like(t, value)) for t in state.values())
    torch.save(state, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 4000, "a view would drag all clients along"


# ------------------------------------------------------------------------------------------- damage


def records_and_checkpoints(folder):
    path = finished_run(folder)
    return [(path, tables.read), (Outputs(path).checkpoint, read_checkpoint)]


def read_or_refuse(path, read):
    """What a damaged file was read as, or None; anything but a value or InputError is a failure."""
    try:
        found = read(path)
        if isinstance(found, tables.Run):
            assert tables.summary(found)
    except InputError as error:
        assert str(error)
        return None
    return found


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"no HDF5 at all" * 1000])
@pytest.mark.parametrize("read", [tables.read, read_checkpoint])
def test_files_that_are_none(tmp_path, content, read):
    (tmp_path / "run.h5").write_bytes(content)
    with pytest.raises(InputError, match="run.h5 is not a readable"):
        read(tmp_path / "run.h5")


@pytest.mark.parametrize("read", [tables.read, read_checkpoint])
def test_missing_files_and_folders(tmp_path, read):
    with pytest.raises(InputError, match="no (record|checkpoint) at .*run.h5"):
        read(tmp_path / "run.h5")
    with pytest.raises(InputError, match="is not a readable"):
        read(tmp_path)


def test_records_are_no_checkpoints_nor_the_reverse(tmp_path):
    (record, read), (weights, read_weights) = records_and_checkpoints(tmp_path)
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        read_weights(record)
    with pytest.raises(InputError, match="is not a readable record"):
        read(weights)


def test_checkpoint_of_another_shape_than_its_layout(tmp_path):
    _, (path, read) = records_and_checkpoints(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["params"]
        file["params"] = np.zeros((CLIENTS, LAYOUT.size + 1))
    with pytest.raises(InputError, match="unlike the model"):
        read(path)


def test_truncated_files(tmp_path):
    chance = random.Random(0)
    for path, read in records_and_checkpoints(tmp_path):
        whole = path.read_bytes()
        cuts = [chance.randrange(len(whole)) for _ in range(30)]
        for cut in cuts:
            path.write_bytes(whole[:cut])
            assert read_or_refuse(path, read) is None, f"{path.name} cut at {cut}"


def test_flipped_bits(tmp_path):
    """Checkpoints have a checksum over all; of a record only the numbers have one."""
    chance = random.Random(0)
    files = records_and_checkpoints(tmp_path)
    params = read_checkpoint(files[1][0])
    for path, read in files:
        whole = path.read_bytes()
        # Most of a record is empty chunks; damage where something is.
        used = [place for place, byte in enumerate(whole) if byte]
        refused = 0
        for _ in range(60):
            damaged = bytearray(whole)
            for place in chance.sample(used, chance.choice([1, 4, 30])):
                damaged[place] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            found = read_or_refuse(path, read)
            refused += found is None
            if read is read_checkpoint and found is not None:
                assert np.array_equal(found, params), "a checkpoint is whole or it is refused"
        assert refused, "none of the damages touched anything that matters"


def test_a_number_that_changed_on_disk_is_said(tmp_path):
    """Any dataset: a flipped bit in a stored value is no other value."""
    path = write_record(tmp_path / "run.h5").path
    whole = path.read_bytes()
    with h5py.File(path) as file:
        found = []
        file.visititems(
            lambda _, each: found.append(each) if isinstance(each, h5py.Dataset) else None
        )
        places = {
            each.name: each.id.get_chunk_info(0).byte_offset
            for each in found
            if each.id.get_num_chunks() and each.size
        }
        assert len(places) == len([each for each in found if each.size])
    assert {"/clients/accuracy", "/model/loss", "/time/seconds", "/partition/indices"} <= set(
        places
    )
    for name, place in places.items():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        if name.startswith("/topology"):
            continue  # read when a run goes on
        with pytest.raises(InputError, match="some of its numbers do not fit their checksum"):
            tables.read(path)


def test_numbers_that_are_none_are_still_shown(tmp_path):
    path = write_record(tmp_path / "run.h5").path
    for value in (np.nan, np.inf):
        with h5py.File(path, "r+") as file:
            for metric in ALWAYS:
                if metric.dtype == "f8":
                    file[metric.dataset][:] = value
        assert str(value) in tables.summary(tables.read(path))


def test_a_reader_does_not_stop_the_run(tmp_path):
    """It keeps the file it opened; the next append replaces the name."""
    record = write_record(tmp_path / "run.h5", rounds=1)
    with h5py.File(record.path, "r") as file:
        record.append(2, np.zeros(CLIENTS, int), evaluation(2), round_record(2))
        assert file["rounds/round"][:].tolist() == [0, 1]
    assert tables.read(record.path).rounds.tolist() == [0, 1, 2]


def test_a_record_with_fewer_phases_goes_on(tmp_path):
    """As in versions that booked waiting to `other`; a rank that was not there stays NaN."""
    path = tmp_path / "run.h5"
    record = write_record(path)
    former = [phase for phase in PHASES if phase not in ("graph", "connect", "gather", "agree")]
    with h5py.File(path, "r+") as file:
        seconds = file["time/seconds"][..., [PHASES.index(phase) for phase in former]]
        seconds[..., former.index("other")] = 7
        seconds[0, 2] = np.nan
        del file["time/seconds"]
        shapes = {"maxshape": (None, None, len(former)), "chunks": True}
        file.create_dataset("time/seconds", data=seconds, **shapes)
        file["time"].attrs["phases"] = former
    record.resume(1, config.parse([]), provenance(SoloWorld(), "cpu", "2.0", {}))
    record.append(2, np.zeros(CLIENTS, int), evaluation(2), round_record(2))
    with h5py.File(path) as file:
        assert tuple(file["time"].attrs["phases"]) == PHASES
        seconds = file["time/seconds"][:]
    assert (seconds[0, :2, PHASES.index("other")] == 7).all()
    assert (seconds[0, :2, PHASES.index("agree")] == 0).all()
    assert np.isnan(seconds[0, 2]).all()
    assert (seconds[1] == round_record(2).seconds).all()
