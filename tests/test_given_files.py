"""Files and paths that users give: read, written, or refused in one line that helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.storage.outputs import Outputs
from tests.children import assert_refused, command, files, run

pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        assert run(folder / f"{seed}.h5", seed=seed).code == 0
    return folder / "0.h5", folder / "1.h5"


# -------------------------------------------------------------------------------- files that it writes


def writers(record):
    """Command lines that write a file, without its name, and the suffix it has."""
    return {
        "export": (["export", record, "--average"], ".pt"),
        "plot": (["plot", record, "--x", "rounds", "-o"], ".svg"),
        "compare": (["compare", record, "--csv"], ".csv"),
        "scaling": (["scaling", "report", record, "--csv"], ".csv"),
    }


@pytest.mark.parametrize("which", ["export", "plot", "compare", "scaling"])
def test_what_exists_is_replaced_only_if_told_and_files_of_runs_never(runs, tmp_path, which):
    words, suffix = writers(runs[0])[which]
    target = tmp_path / f"x{suffix}"
    target.write_text("mine")
    assert_refused(command(*words, target).wait(), f"{target} exists; choose another name, or give")
    assert target.read_text() == "mine"
    if which != "scaling":  # which needs runs on several numbers of ranks
        ended = command(*words, target, "--overwrite").wait()
        assert ended.code == 0, ended
        assert target.read_bytes() != b"mine"
    before = files(runs[0].parent)
    for victim in (runs[1], Outputs(runs[0]).checkpoint, tmp_path / f"link{suffix}"):
        if victim.suffix != ".h5":
            victim.symlink_to(runs[1])
        refused = command(*words, victim, "--overwrite").wait()
        assert_refused(refused, "perhaps a record or a checkpoint, and is never replaced")
    assert files(runs[0].parent) == before


def test_weights_are_exported_to_their_own_kind_of_file(runs, tmp_path):
    ended = command("export", runs[0], "--average", tmp_path / "w.txt").wait()
    assert_refused(ended, "must end in one of .pt, .pth")


def test_a_leading_tilde_of_an_output_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run("~/new/run.h5").code == 0
    assert (tmp_path / "new" / "run.h5").exists()
    assert not (tmp_path / "~").exists()
    assert_refused(
        run("~nosuchuser/run.h5"), "-o: '~nosuchuser/run.h5' begins with the home folder"
    )


def test_a_working_folder_that_is_gone_is_said(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert_refused(run("x.h5"), "the working folder is gone")
    monkeypatch.undo()


# --------------------------------------------------------------------------------- files that it reads


def check(setting, *words):
    sets = ("clients=4", "topology.degree=3", "model.hidden=[4]", setting, *words)
    return command(
        "check", "--no-measure", *(word for each in sets for word in ("--set", each))
    ).wait()


def state(change=lambda tensor: tensor):
    layout = MLP((64, 4, 10)).layout
    return {name: change(t) for name, t in layout.unflatten(torch.ones(layout.size)).items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to(torch.int64), "fc1.weight must hold float16, bfloat16, float32 or float64"),
        (lambda t: torch.complex(t, t), "got complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "got float8_e4m3fn"),
        (lambda t: t > 0, "got bool"),
        (lambda t: t.to("meta"), "fc1.weight is empty (meta)"),
        (lambda t: t.to_sparse(), "fc1.weight is sparse; save it as a dense tensor"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantised"),
        (lambda t: 1e300 * t.double(), "beyond the range of float32; use compute.dtype=float64"),
    ],
)
def test_weights_that_cannot_be_a_start_are_refused(tmp_path, change, said):
    path = tmp_path / "w.pt"
    torch.save(state(change), path)
    assert_refused(check(f"model.weights={path}"), str(path), said)


@pytest.mark.parametrize("change", [torch.nn.Parameter, lambda t: t.half(), lambda t: t.double()])
def test_weights_of_other_kinds_are_taken(tmp_path, change):
    """Parameters, as `dict(net.named_parameters())` has them, and other precisions."""
    torch.save(state(change), tmp_path / "w.pt")
    ended = check(f"model.weights={tmp_path / 'w.pt'}")
    assert ended.code == 0, ended


def pickled(path):
    with path.open("wb") as file:
        np.savez(file, offsets=np.array([{}], dtype=object), indices=[1])


def raw_pickle(path):
    np.array([{}], dtype=object).dump(path)


@pytest.mark.parametrize("key", ["partition.path", "model.weights"])
@pytest.mark.parametrize("save", [pickled, raw_pickle, None])
def test_no_message_advises_to_load_unsafely(tmp_path, key, save):
    path = "/dev/zero" if save is None else tmp_path / "file"
    if save is not None:
        save(path)
    kind = ["partition.kind=file"] if key == "partition.path" else []
    ended = check(f"{key}={path}", *kind)
    assert_refused(ended, str(path))
    for word in ("pickle", "weights_only", "unsafe", "trust"):
        assert word not in ended.err


def test_samples_that_a_client_holds_twice_are_said(tmp_path):
    path = tmp_path / "p.npz"
    np.savez(path, offsets=[0, 3, 4, 6, 7], indices=[5, 6, 5, 5, 7, 8, 1])
    ended = check(f"partition.path={path}", "partition.kind=file")
    assert ended.code == 0
    assert "1 samples are held twice by one client, the first is sample 5 of client 0" in ended.err


@pytest.mark.parametrize("words", [("compare", "--target"), ("plot", "-o", "x.svg", "--target")])
def test_a_target_that_is_no_number(runs, words):
    ended = command(words[0], runs[0], *words[1:], "nan").wait()
    assert ended.code == 2
    assert "nan is no number" in ended.err
