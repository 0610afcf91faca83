"""Checkpoints in parts: what is on the disk, what belongs together, what is said where it does not."""

from __future__ import annotations

import contextlib
import shutil

import h5py
import numpy as np
import pytest

from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.planning.costs import writing_groups
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage import checkpoint, parts
from mpi_ntkdfl.storage.checkpoint import Checkpoint, Header
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.rows import Rows
from tests.children import assert_refused, command, files, in_parts, run

LAYOUT = Layout({"w": (2, 3), "b": (1,)})
PARAMS = np.arange(35, dtype=np.float32).reshape(5, 7)
MASKS = np.arange(20).reshape(5, 4) % 3 == 0
CUTS = (range(2), range(2, 3), range(3, 5))


def rows(clients, blocks=True):
    """The arrays of consecutive clients, in blocks of one client."""
    arrays = {"params": PARAMS, "state/mask": MASKS}
    return {
        name: Rows(
            (len(clients), *each.shape[1:]),
            each.dtype,
            [each[i : i + 1] for i in clients if blocks],
        )
        for name, each in arrays.items()
    }


def write(record, done=1):
    """A checkpoint of three parts."""
    outputs = Outputs(record)
    stem = parts.begin(outputs, done)
    written = [
        parts.write(outputs, f"{stem}-{number}.h5", clients, rows(clients))
        for number, clients in enumerate(CUTS)
    ]
    assert parts.settled(outputs, written)
    header = Header("rounds: 3\n", LAYOUT, done, "0123")
    checkpoint.join(outputs, header, rows(range(5), blocks=False), written)
    return outputs


def weights(path):
    with contextlib.closing(Checkpoint(path)) as opened:
        return opened.rows("params", range(opened.clients))


@pytest.mark.parametrize("name", ["run.h5", "50%b and % more.h5"])
def test_any_clients_come_back_and_other_tools_see_all_rows(tmp_path, name):
    outputs = write(tmp_path / name)
    with contextlib.closing(Checkpoint(outputs.checkpoint)) as opened:
        assert (opened.arrays, opened.clients) == (["params", "state/mask"], 5)
        assert (opened.round, opened.run, opened.layout) == (1, "0123", LAYOUT)
        for start in range(5):
            for stop in range(start, 6):
                clients = slice(start, stop)
                mine = range(start, stop)
                assert np.array_equal(opened.rows("params", mine), PARAMS[clients])
                assert np.array_equal(opened.rows("state/mask", mine), MASKS[clients])
    with h5py.File(outputs.checkpoint) as file:
        assert np.array_equal(file["params"], PARAMS)
        assert np.array_equal(file["state/mask"], MASKS)


def test_parts_of_two_checkpoints_are_kept_and_an_open_one_stays_readable(tmp_path):
    outputs = write(tmp_path / "run.h5", 1)
    (outputs.parts / "mine.h5").touch()
    with contextlib.closing(Checkpoint(outputs.checkpoint)) as opened:
        for done in (2, 3):
            write(outputs.record, done)
        assert np.array_equal(opened.rows("params", range(5)), PARAMS)
    names = sorted(p.name.partition("-")[0] for p in outputs.parts.iterdir())
    assert names == ["2"] * 3 + ["3"] * 3 + ["mine.h5"]
    checkpoint.write(outputs, Header("", LAYOUT, 4), rows(range(5)))
    outputs.checkpoint.write_bytes(b"damaged")
    checkpoint.remove_spare_parts(outputs)
    assert len(list(outputs.parts.iterdir())) == 4, "it might have named some"


def test_one_part_of_a_checkpoint_that_is_missing_or_another_one(tmp_path):
    outputs = write(tmp_path / "run.h5")
    first, second = sorted(outputs.parts.iterdir())[:2]
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name} is missing; .* belong together"):
        weights(outputs.checkpoint)
    shutil.copy(second, first)
    with pytest.raises(InputError, match=f"{first.name} has other clients"):
        weights(outputs.checkpoint)
    place = content.rindex(PARAMS[1].tobytes())
    first.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(InputError, match=f"{first.name} does not match its checksum"):
        weights(outputs.checkpoint)


def test_all_files_of_a_run_may_move_together(tmp_path):
    """To another folder, and to another name."""
    outputs = write(tmp_path / "run.h5")
    moved = Outputs(tmp_path / "folder" / "other.h5")
    moved.parts.parent.mkdir()
    outputs.checkpoint.rename(moved.checkpoint)
    with pytest.raises(
        InputError, match=r"is missing; .* folder other\.ckpt\.parts belong together"
    ):
        weights(moved.checkpoint)
    outputs.parts.rename(moved.parts)
    assert np.array_equal(weights(moved.checkpoint), PARAMS)


def test_groups_of_ranks():
    assert writing_groups(4, 4 * 2**28, 2**28) == [range(i, i + 1) for i in range(4)]
    assert writing_groups(7, 3 * 2**28, 2**28) == [range(2), range(2, 4), range(4, 7)]
    assert writing_groups(7, 2**29 - 1, 2**28) == writing_groups(1, 2**40, 1) == []
    assert writing_groups(4, 2**40, None) == []


def test_where_hosts_do_not_share_the_folder_one_file_is_written(tmp_path):
    """A host without the folder writes no part, but takes what the ranks of its group send."""
    outputs, sent = Outputs(tmp_path / "run.h5"), iter([PARAMS])
    arrays = {"params": Rows(PARAMS.shape, PARAMS.dtype, sent)}
    assert parts.write(outputs, "1-00000000-0.h5", range(5), arrays) is None
    assert next(sent, None) is None
    parts.begin(outputs, 1)
    assert not parts.settled(outputs, [None])
    assert not parts.settled(outputs, [parts.Part("1-00000000-0.h5", 0, 5, 1, "")])


@pytest.mark.usefixtures("quick_starts")
def test_commands_read_parts_and_overwrite_removes_them(tmp_path):
    path, target = tmp_path / "run.h5", tmp_path / "weights.pt"
    assert run(path, before=in_parts).code == 0
    before = files(tmp_path)
    assert len(before) == 5
    (Outputs(path).parts / "3-0123abcd-0.h5").touch()  # of a kill after the last checkpoint
    assert "nothing to do" in run(path, "--resume", before=in_parts).out
    assert files(tmp_path) == before
    assert command("export", path, "--average", target).wait().code == 0
    target.unlink()
    shown = command("show", path).wait()
    assert (shown.code, files(tmp_path)) == (0, before)
    assert run(path, "--overwrite", rounds="1").code == 0
    assert sorted(files(tmp_path)) == ["run.ckpt.h5", "run.h5"]
    Outputs(path).parts.touch()
    assert_refused(run(path, "--resume", rounds="2"), "run.ckpt.parts is not a folder")
