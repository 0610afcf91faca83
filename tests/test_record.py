"""Record and checkpoint: written and read back, half written, damaged, and never overwritten badly."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mpi_ntkdfl import checkpoint, config
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.clock import PHASES
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.errors import InputError
from mpi_ntkdfl.evaluate import Evaluation
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.record import Record, RoundRecord, output_path, provenance, refuse_output

CLIENTS, RANKS = 4, 3
LAYOUT = Layout({"fc1.weight": (3, 5), "fc1.bias": (3,)})
PARTITION = np.array([0, 2, 3, 5, 9]), np.array([4, 1, 0, 7, 7, 2, 3, 5, 6])
BY_EVALUATION = [
    "rounds/round",
    *("clients/accuracy", "clients/loss", "clients/tau"),
    *("model/accuracy", "model/loss", "model/gradient_norm", "deviation"),
]
BY_ROUND = ["traffic/protocol_bytes", "traffic/mpi_bytes", "time/seconds"]


def config_text():
    layers = [*config.read_source("quickstart"), {"clients": CLIENTS, "topology": {"degree": 3}}]
    return config.parse(layers, {name: m.Settings for name, m in METHODS.items()}).to_yaml()


def evaluation(done):
    rows = np.arange(CLIENTS) / 10 + done / 100
    return Evaluation(rows, rows + 1, 0.5 + done / 10, 2.0 - done / 10, 0.25 * done, 0.125 * done)


def round_record(done):
    edges = np.array([[0, 1], [1, 2], [2, 3]])[: done + 1]
    traffic = np.arange(2 * len(TRAFFIC_PHASES)).reshape(2, -1) + 10 * done
    return RoundRecord(edges, traffic, np.full((RANKS, len(PHASES)), done / 4))


def write_record(path, rounds=2):
    """A record as a run of `rounds` rounds leaves it."""
    hosts = ("a", "a", "b")
    attributes = provenance(config_text(), 0, hosts, "Some MPI", "cpu", "2.0")
    record = Record(path)
    record.create(attributes, CLIENTS, RANKS, PARTITION)
    record.append(0, np.zeros(CLIENTS, int), evaluation(0), None)
    for done in range(1, rounds + 1):
        record.append(done, np.full(CLIENTS, 100 * done), evaluation(done), round_record(done))
    return record


def write_checkpoint(path, done=2, rows=None):
    """A checkpoint in which client i's parameters are i + done / 10."""
    if rows is None:
        ids = np.arange(CLIENTS, dtype=np.float32)[:, None] + np.float32(done / 10)
        weights = np.repeat(ids, LAYOUT.size, axis=1)
        rows = [weights[:1], weights[1:]]
    shape = (CLIENTS, LAYOUT.size)
    checkpoint.write(path, rows, shape, np.dtype("f4"), config_text(), LAYOUT, done)


def finished_run(folder: Path) -> Path:
    """The record of a run, with its checkpoint beside it."""
    path = folder / "run.h5"
    write_record(path)
    write_checkpoint(checkpoint.checkpoint_path(path))
    return path


# ------------------------------------------------------------------------------------------- record


def test_rows_come_back(tmp_path):
    write_record(tmp_path / "run.h5", rounds=3)
    run = tables.read(tmp_path / "run.h5")
    assert run.rounds.tolist() == [0, 1, 2, 3]
    for row, expected in enumerate(map(evaluation, range(4))):
        assert np.array_equal(run.accuracy[row], expected.accuracy)
        assert np.array_equal(run.loss[row], expected.loss)
        assert run.model_accuracy[row] == expected.model_accuracy
        assert run.model_loss[row] == expected.model_loss
        assert run.gradient_norm[row] == expected.gradient_norm
        assert run.deviation[row] == expected.deviation
        assert run.tau[row].tolist() == [100 * row] * CLIENTS
    for row, expected in enumerate(map(round_record, range(1, 4))):
        assert np.array_equal(run.protocol_bytes[row], expected.traffic[0])
        assert np.array_equal(run.mpi_bytes[row], expected.traffic[1])
        assert np.array_equal(run.seconds[row], expected.seconds)
    assert tuple(run.traffic_phases) == TRAFFIC_PHASES
    assert tuple(run.time_phases) == PHASES


def test_graphs_and_partition_come_back(tmp_path):
    write_record(tmp_path / "run.h5", rounds=2)
    with h5py.File(tmp_path / "run.h5", "r") as file:
        edges, offsets = file["topology/edges"][:], file["topology/offsets"][:]
        found = [edges[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
        assert len(found) == 2
        for number, graph in enumerate(found, start=1):
            assert np.array_equal(graph, round_record(number).edges)
        assert np.array_equal(file["partition/offsets"][:], PARTITION[0])
        assert np.array_equal(file["partition/indices"][:], PARTITION[1])


def test_rounds_without_evaluation_add_no_row(tmp_path):
    record = write_record(tmp_path / "run.h5", rounds=1)
    record.append(2, np.zeros(CLIENTS, int), None, round_record(2))
    record.append(3, np.zeros(CLIENTS, int), evaluation(3), round_record(3))
    run = tables.read(tmp_path / "run.h5")
    assert run.rounds.tolist() == [0, 1, 3]
    assert len(run.deviation) == len(run.accuracy) == 3
    assert len(run.mpi_bytes) == len(run.seconds) == 3


def test_a_new_record_replaces_the_old_one(tmp_path):
    write_record(tmp_path / "run.h5", rounds=3)
    write_record(tmp_path / "run.h5", rounds=1)
    assert tables.read(tmp_path / "run.h5").rounds.tolist() == [0, 1]


@pytest.mark.parametrize(("names", "kept"), [(BY_EVALUATION, "rounds"), (BY_ROUND, "seconds")])
def test_half_a_round_at_the_end_is_left_out(tmp_path, names, kept):
    """Whichever of the datasets a killed run had extended."""
    before = tables.read(write_record(tmp_path / "run.h5").path)
    for extended in range(1, len(names)):
        for some in (names[:extended], names[extended:]):
            path = tmp_path / "half.h5"
            shutil.copy(tmp_path / "run.h5", path)
            with h5py.File(path, "r+") as file:
                for name in some:
                    file[name].resize(len(file[name]) + 1, axis=0)
            run = tables.read(path)
            assert {len(getattr(run, f)) for f in vars(run) if f.startswith("model_")} == {3}
            assert len(getattr(run, kept)) == len(getattr(before, kept))
            assert tables.summary(run) == tables.summary(before)


def test_record_of_a_run_that_never_started(tmp_path):
    attributes = provenance(config_text(), 0, ("a",), "Some MPI", "cpu", "2.0")
    Record(tmp_path / "run.h5").create(attributes, CLIENTS, 1, PARTITION)
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
    with pytest.raises(InputError, match="cannot write .*choose another -o"):
        Record(tmp_path / "file" / "run.h5").create({}, 1, 1, PARTITION)


# ------------------------------------------------------------------------------------- output names


def test_output_is_named_after_the_source_or_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_path(Path("wanted.h5"), "quickstart") == Path("wanted.h5")
    for taken in ("quickstart.h5", "quickstart-2.ckpt.h5", "quickstart-3.h5"):
        assert output_path(None, "quickstart").name == taken.replace(".ckpt", "")
        Path(taken).touch()
    assert output_path(None, "quickstart") == Path("quickstart-4.h5")


@pytest.mark.parametrize("taken", ["run.h5", "run.ckpt.h5"])
def test_existing_output_is_refused_unless_told(tmp_path, taken):
    (tmp_path / taken).touch()
    with pytest.raises(InputError, match=f"{taken} exists; choose another -o, or give --overwrite"):
        refuse_output(tmp_path / "run.h5", overwrite=False)
    refuse_output(tmp_path / "run.h5", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_unusable_outputs_are_refused(tmp_path, overwrite):
    (tmp_path / "file").touch()
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "run.ckpt.h5").mkdir()
    for output in ("folder.h5", "run.h5", "file/run.h5", "file/a/run.h5", "n" * 300, "/proc/x.h5"):
        with pytest.raises(InputError):
            refuse_output(tmp_path / output, overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.h5", "run.ckpt.h5"]


def test_free_output_below_new_folders_is_fine_and_nothing_is_made_yet(tmp_path):
    refuse_output(tmp_path / "a" / "b" / "run.h5", overwrite=False)
    assert not list(tmp_path.iterdir())


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
    assert checkpoint.checkpoint_path(Path(record)) == Path(expected)


# --------------------------------------------------------------------------------------- checkpoint


def test_checkpoint_comes_back(tmp_path):
    write_checkpoint(tmp_path / "run.ckpt.h5", done=7)
    found = checkpoint.read(tmp_path / "run.ckpt.h5")
    assert found.params.dtype == torch.float32
    expected = torch.arange(CLIENTS)[:, None].expand(-1, LAYOUT.size) + torch.tensor(0.7)
    assert torch.equal(found.params, expected)
    assert found.layout == LAYOUT
    assert (found.round, found.config) == (7, config_text())
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt.h5"]


@pytest.mark.parametrize(
    "rows", ["raises", "too few", "too many", "misshapen"], ids=lambda rows: rows.replace(" ", "-")
)
@pytest.mark.parametrize("exists", [True, False])
def test_failing_checkpoint_leaves_the_old_one_alone(tmp_path, rows, exists):
    path = tmp_path / "run.ckpt.h5"
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
    (tmp_path / "run.ckpt.h5.tmp").write_bytes(b"half a file")
    write_checkpoint(tmp_path / "run.ckpt.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt.h5"]


@pytest.mark.parametrize(("client", "value"), [(0, 0.0), (3, 3.0), (None, 1.5)])
def test_export(tmp_path, client, value):
    write_checkpoint(tmp_path / "run.ckpt.h5", done=0)
    checkpoint.export_weights(checkpoint.read(tmp_path / "run.ckpt.h5"), client, tmp_path / "w.pt")
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert {name: tuple(t.shape) for name, t in state.items()} == dict(LAYOUT.shapes)
    assert all(torch.equal(t, torch.full_like(t, value)) for t in state.values())
    assert (tmp_path / "w.pt").stat().st_size < 4000, "a view would drag all clients along"


# ------------------------------------------------------------------------------------------- damage


def records_and_checkpoints(folder):
    path = finished_run(folder)
    return [(path, tables.read), (checkpoint.checkpoint_path(path), checkpoint.read)]


def read_or_refuse(path, read):
    """Whether a damaged file was still read; anything but a value or InputError is a failure."""
    try:
        found = read(path)
        if isinstance(found, tables.Run):
            assert tables.summary(found)
        else:
            checkpoint.export_weights(found, 0, path.with_suffix(".pt"))
    except InputError as error:
        assert str(error)
        return False
    return True


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"no HDF5 at all" * 1000])
@pytest.mark.parametrize("read", [tables.read, checkpoint.read])
def test_files_that_are_none(tmp_path, content, read):
    (tmp_path / "run.h5").write_bytes(content)
    with pytest.raises(InputError, match="run.h5 is no readable"):
        read(tmp_path / "run.h5")


@pytest.mark.parametrize("read", [tables.read, checkpoint.read])
def test_missing_files_and_folders(tmp_path, read):
    with pytest.raises(InputError, match="no (record|checkpoint) at .*run.h5"):
        read(tmp_path / "run.h5")
    with pytest.raises(InputError, match="is no readable"):
        read(tmp_path)


def test_records_are_no_checkpoints_nor_the_reverse(tmp_path):
    (record, read), (weights, read_weights) = records_and_checkpoints(tmp_path)
    with pytest.raises(InputError, match="is no readable checkpoint"):
        read_weights(record)
    with pytest.raises(InputError, match="is no readable record"):
        read(weights)


def test_checkpoint_of_another_shape_than_its_layout(tmp_path):
    _, (path, read) = records_and_checkpoints(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["params"]
        file["params"] = np.zeros((CLIENTS, LAYOUT.size + 1))
    with pytest.raises(InputError, match="do not fit"):
        read(path)


def test_truncated_files(tmp_path):
    chance = random.Random(0)
    for path, read in records_and_checkpoints(tmp_path):
        whole = path.read_bytes()
        cuts = [chance.randrange(len(whole)) for _ in range(30)]
        for cut in cuts:
            path.write_bytes(whole[:cut])
            assert not read_or_refuse(path, read), f"{path.name} cut at {cut}"


def heaps(content):
    """Where HDF5 keeps strings of any length."""
    at = content.find(b"GCOL")
    while at >= 0:
        yield range(at, at + int.from_bytes(content[at + 8 : at + 16], "little"))
        at = content.find(b"GCOL", at + 1)


def test_flipped_bits(tmp_path):
    """Data have no checksums, so a damaged file may well be read as another one.

    Nor have heaps; HDF5 itself crashes over some damages there, which no caller can prevent.
    """
    chance = random.Random(0)
    for path, read in records_and_checkpoints(tmp_path):
        whole = path.read_bytes()
        # Most of a record is empty chunks; damage where something is.
        spared = {place for heap in heaps(whole) for place in heap}
        used = [place for place, byte in enumerate(whole) if byte and place not in spared]
        refused = 0
        for _ in range(60):
            damaged = bytearray(whole)
            for place in chance.sample(used, chance.choice([1, 4, 30])):
                damaged[place] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            refused += not read_or_refuse(path, read)
        assert refused, "none of the damages touched anything that matters"


def test_numbers_that_are_none_are_still_shown(tmp_path):
    path = write_record(tmp_path / "run.h5").path
    for value in (np.nan, np.inf):
        with h5py.File(path, "r+") as file:
            for name in BY_EVALUATION:
                if file[name].dtype.kind == "f":
                    file[name][:] = value
        assert str(value) in tables.summary(tables.read(path))


READER = """
import sys, time, h5py
with h5py.File(sys.argv[1], "r"):
    print("open", flush=True)
    sys.stdin.readline()
    time.sleep(0.5)
"""


def test_a_reader_does_not_stop_the_run(tmp_path):
    """HDF5 locks a file that is being read; the next append waits instead of failing."""
    record = write_record(tmp_path / "run.h5", rounds=1)
    command = [sys.executable, "-c", READER, str(record.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(BlockingIOError):
            h5py.File(record.path, "r+")
        reader.stdin.write(b"\n")
        reader.stdin.flush()
        record.append(2, np.zeros(CLIENTS, int), evaluation(2), round_record(2))
    assert tables.read(record.path).rounds.tolist() == [0, 1, 2]
