"""Data sets: finding, reading, scaling, downloading, and files that are wrong."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_ntkdfl.config import DatasetSettings, dataset_settings
from mpi_ntkdfl.data import femnist, idx, image_sets, sources
from mpi_ntkdfl.data.dataset import Scaling, standardise
from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.data.image_sets import FILES, Hashes, ImageSet
from mpi_ntkdfl.runtime.errors import InputError
from tests.conftest import examples

IMAGES, OTHERS = np.random.default_rng(0).integers(0, 256, (2, 12, 28, 28)).astype(np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def dataset(name: str, root: Path | str | None = None) -> DatasetSettings:
    return dataset_settings(name, root=None if root is None else str(root))


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_set(folder: Path, suffix: str = ".gz", **parts: np.ndarray) -> Path:
    """Four IDX files of 12 samples each; `parts` replaces some of them."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": OTHERS,
        "test_labels": LABELS[::-1],
    }
    for part, array in (usual | parts).items():
        content = idx_bytes(array)
        path = folder / f"{FILES[part]}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder instead of the user's, and no Debian package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    without = dataclasses.replace(FASHION_MNIST, packaged=tmp_path / "debian")
    monkeypatch.setitem(sources.DATASETS._entries, "fashion-mnist", without)
    return tmp_path / "xdg" / "mpi_ntkdfl"


def refused(message: str) -> Any:
    return pytest.raises(InputError, match=message)


# ---------------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path: Path, suffix: str) -> None:
    folder = write_set(tmp_path, suffix)
    got = idx.read(folder / f"train-images-idx3-ubyte{suffix}", (None, 28, 28))
    assert got.dtype == np.uint8
    assert np.array_equal(got, IMAGES)
    assert got.flags.writeable
    got = idx.read(folder / f"train-labels-idx1-ubyte{suffix}", (None,))
    assert np.array_equal(got, LABELS)


GOOD = idx_bytes(IMAGES)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with 00 00 08 03, got an empty file"),
        (b"\0\0\x08\x01" + GOOD[4:], "starts with 00 00 08 03, got 00 00 08 01"),
        (GOOD[:11], r"header has 16 bytes, got 11 \(truncated\)"),
        (GOOD[:-1], r"12 x 28 x 28 = 9408 bytes must follow.*got 9407 \(truncated\)"),
        (GOOD + b"\0", "9408 bytes must follow.*got more"),
        (idx_bytes(IMAGES[:, :27]), "must hold n x 28 x 28 bytes, got 12 x 27 x 28"),
        (
            GOOD[:4] + b"\xff" * 4 + GOOD[8:],
            "promises 4294967295 x 28 x 28 bytes, more than its size",
        ),
    ],
)
def test_idx_that_is_wrong(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with refused(message) as raised:
        idx.read(path, (None, 28, 28))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_idx_that_is_no_sound_gzip(tmp_path: Path) -> None:
    path, packed = tmp_path / "images.gz", gzip.compress(GOOD)
    spoilt = bytearray(packed)
    spoilt[-6] ^= 1  # in the check sum
    contents = {
        b"hello, this is no gzip file": "not a sound gzip file",
        packed[:-3]: "damaged gzip file",
        bytes(spoilt): "not a sound gzip file",
        packed[:10] + b"\xff" * 50: "damaged gzip file",
    }
    for content, message in contents.items():
        path.write_bytes(content)
        with refused(message):
            idx.read(path, (None, 28, 28))


def test_idx_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.gz").mkdir()
    for name in ("none", "none.gz", "folder.gz"):
        with refused("cannot be read"):
            idx.read(tmp_path / name, (None,))


def damage(content: bytes, data: st.DataObject) -> bytes:
    damaged = bytearray(content)
    if data.draw(st.booleans(), "truncate"):
        del damaged[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:
        for bit in data.draw(
            st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)
        ):
            damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@examples(250)
@given(data=st.data())
def test_damaged_idx_is_refused_or_valid(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    content = idx_bytes(LABELS)
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(damage(gzip.compress(content) if suffix else content, data))
    try:
        got = idx.read(path, (None,))
    except InputError:
        return
    # A plain file has no check sum: damaged labels remain labels. A compressed one has.
    assert got.shape == LABELS.shape
    assert not suffix or np.array_equal(got, LABELS)


# --------------------------------------------------------------------------------------- image sets


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_image_set(tmp_path: Path, name: str, suffix: str) -> None:
    got = sources.load(dataset(name, write_set(tmp_path, suffix)))
    assert (got.name, got.classes, got.sites, got.shape) == (name, 10, None, (1, 28, 28))
    assert np.array_equal(got.train_inputs, IMAGES.reshape(12, 784))
    assert np.array_equal(got.test_inputs, OTHERS.reshape(12, 784))
    assert got.train_inputs.dtype == got.test_inputs.dtype == np.uint8
    assert got.train_labels.tolist() == LABELS.tolist()
    assert got.test_labels.tolist() == LABELS[::-1].tolist()
    assert got.train_labels.dtype == got.test_labels.dtype == np.int64


@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw", "raw"])
def test_root_is_searched_as_torchvision_lays_it_out(tmp_path: Path, inside: str) -> None:
    folder = write_set(tmp_path / inside)
    paths = sources.locate(dataset("fashion-mnist", tmp_path))
    assert paths.keys() == FILES.keys()
    assert {path.parent for path in paths.values()} == {folder}


def test_the_other_sets_torchvision_folder_is_not_taken(tmp_path: Path) -> None:
    write_set(tmp_path / "MNIST" / "raw")
    assert sources.locate(dataset("mnist", tmp_path))
    with refused("fashion-mnist needs its four IDX files"):
        sources.locate(dataset("fashion-mnist", tmp_path))


def test_cache_comes_before_the_debian_package_and_root_excludes_both(
    tmp_path: Path, cache: Path
) -> None:
    debian = write_set(tmp_path / "debian")
    assert sources.locate(dataset("fashion-mnist"))["train_images"].parent == debian
    cached = write_set(cache / "fashion-mnist", "")
    assert sources.locate(dataset("fashion-mnist"))["train_images"].parent == cached
    with refused("needs its four IDX files") as raised:
        sources.locate(dataset("fashion-mnist", tmp_path / "elsewhere"))
    assert str(debian) not in str(raised.value)


def test_missing_files_are_explained(cache: Path) -> None:
    write_set(cache / "fashion-mnist")
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with refused("without t10k-labels-idx1-ubyte") as raised:
        sources.locate(dataset("fashion-mnist"))
    for part in (
        str(cache / "fashion-mnist"),
        f"{cache.parents[1] / 'debian'} (nothing there)",
        "python -m mpi_ntkdfl data fetch fashion-mnist",
        "dataset.root",
        "dataset-fashion-mnist",
    ):
        assert part in str(raised.value)
    with refused("data fetch mnist") as raised:
        sources.locate(dataset("mnist"))
    assert "Debian" not in str(raised.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train_labels": LABELS[1:]}, "label for each of the 12 images .*got 11"),
        ({"test_labels": LABELS + 5}, "in 0..9, got 10 at test sample 5"),
        ({"train_labels": LABELS + 9}, "in 0..9, got 10 at training sample 1"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "training samples, got none"),
        ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, "test samples, got none"),
        ({"train_images": IMAGES.reshape(12, 784)}, "00 00 08 03, got 00 00 08 02"),
    ],
)
def test_image_set_that_is_wrong(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    write_set(tmp_path, **parts)
    with refused(message):
        sources.load(dataset("mnist", tmp_path))


@pytest.mark.parametrize("spelling", ["train-images.idx3-ubyte", "train-images.idx3-ubyte.gz"])
def test_files_as_other_tools_name_them_are_found(tmp_path: Path, spelling: str) -> None:
    end = ".gz" if spelling.endswith(".gz") else ""
    write_set(tmp_path, end)
    (tmp_path / f"train-images-idx3-ubyte{end}").rename(tmp_path / spelling)
    assert sources.locate(dataset("mnist", tmp_path))["train_images"] == tmp_path / spelling


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the four files of `write_set` were those of fashion-mnist."""
    arrays = (IMAGES, LABELS, OTHERS, LABELS[::-1])
    for part, array in zip(FILES, arrays, strict=True):
        known = hashlib.sha256(idx_bytes(array)).hexdigest()
        monkeypatch.setitem(image_sets.PUBLISHED, known, ("fashion-mnist", part))


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("part", FILES)
def test_each_file_is_compared_with_all_published_ones(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path)
    assert sources.load(dataset("fashion-mnist", tmp_path)).classes == 10
    assert not caplog.text
    own = {key: np.ones_like(IMAGES if "images" in key else LABELS) for key in FILES}
    own["test_images"] = own["test_images"] * 2
    # One file of another published set among the user's own.
    del own[part]
    write_set(tmp_path, **own)
    with refused(f"data set mnist: .*{FILES[part]}.gz belongs to fashion-mnist"):
        sources.load(dataset("mnist", tmp_path))
    # A file of the user's own among published ones.
    write_set(tmp_path, **{part: (IMAGES if "images" in part else LABELS)[::-1] // 2})
    caplog.clear()
    sources.load(dataset("fashion-mnist", tmp_path))
    assert caplog.text.count("is not the published file; it is used as your own") == 1
    assert FILES[part] in caplog.text


@pytest.mark.usefixtures("published")
def test_a_published_file_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, test_images=IMAGES)
    with refused("t10k-images.* holds the published train_images, but test_images are needed"):
        sources.load(dataset("fashion-mnist", tmp_path))


def test_a_test_set_of_training_samples_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    write_set(tmp_path, test_images=IMAGES[4::-1], test_labels=LABELS[:5])
    with refused("all 5 test samples occur in training.*dataset.train_as_test=true"):
        sources.load(dataset("mnist", tmp_path))
    wanted = dataset("mnist", tmp_path).model_copy(update={"train_as_test": True})
    assert len(sources.load(wanted).test_labels) == 5


def test_without_a_home_folder_the_ways_out_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for name in ("mnist", "femnist"):
        with refused("this user has no home folder: set .*XDG_CACHE_HOME.*dataset.root"):
            sources.locate(dataset(name))
    with refused("no folder to download mnist to.*XDG_CACHE_HOME"):
        sources.fetch("mnist")
    assert "mnist" in {entry.name for entry in sources.catalogue()}


needs_fashion = pytest.mark.skipif(
    not FASHION_MNIST.packaged.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)


@needs_fashion
def test_real_fashion_mnist() -> None:
    got = sources.load(dataset("fashion-mnist", FASHION_MNIST.packaged))
    assert got.train_inputs.shape == (60_000, 784)
    assert got.test_inputs.shape == (10_000, 784)
    assert (np.bincount(got.train_labels) == 6000).all()
    assert (np.bincount(got.test_labels) == 1000).all()
    measured = standardise(got.train_inputs, 255.0, per_feature=False)
    assert np.allclose(measured.mean, got.scaling.mean, atol=5e-5)
    assert np.allclose(measured.deviation, got.scaling.deviation, atol=5e-5)


@needs_fashion
def test_real_fashion_mnist_has_the_published_hashes_and_is_no_mnist() -> None:
    for part, hashes in FASHION_MNIST.hashes.items():
        path = FASHION_MNIST.packaged / f"{FILES[part]}.gz"
        assert idx.content_hash(path) == hashes.sha256
    with refused("data set mnist: .* belongs to fashion-mnist"):
        sources.load(dataset("mnist", FASHION_MNIST.packaged))


# ---------------------------------------------------------------------------- bundled sets, scaling


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_bundled_set_is_split_once_and_for_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import datasets

    load = datasets.load_digits if name == "digits" else datasets.load_breast_cancer
    values, labels = load(return_X_y=True)
    got = sources.load(dataset(name))
    with monkeypatch.context() as patch:  # as where scikit-learn keeps its tables elsewhere
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        again = sources.load(dataset(name))
    assert np.array_equal(got.train_inputs, again.train_inputs)
    assert np.array_equal(got.test_labels, again.test_labels)
    both = np.concatenate([got.train_inputs, got.test_inputs])
    assert sorted(both.tolist()) == sorted(values.astype(both.dtype).tolist())
    for label in range(got.classes):
        share = (got.test_labels == label).sum() / (labels == label).sum()
        assert abs(share - 0.2) < 0.005


def test_digits_are_exact_bytes() -> None:
    got = sources.load(dataset("digits"))
    assert got.train_inputs.dtype == np.uint8
    assert got.train_inputs.max() == 16
    inputs = got.scaling.apply(got.train_inputs, np.float64)
    assert got.scaling.mean.shape == got.scaling.deviation.shape == (1,)
    assert abs(inputs.mean()) < 1e-12
    assert abs(inputs.std() - 1) < 1e-12


def test_breast_cancer_is_scaled_by_feature() -> None:
    got = sources.load(dataset("breast-cancer"))
    inputs = got.scaling.apply(got.train_inputs, np.float64)
    assert got.scaling.mean.shape == got.scaling.deviation.shape == (30,)
    assert np.allclose(inputs.mean(axis=0), 0, atol=1e-10)
    assert np.allclose(inputs.std(axis=0), 1)


def test_constant_feature_has_deviation_one() -> None:
    # 0.1 is no finite binary fraction, so its mean would carry an error if the sum were rounded.
    inputs = np.stack([np.full(5000, 0.1), np.arange(5000.0)], axis=1).astype(np.float32)
    got = standardise(inputs, 1.0, per_feature=True)
    assert got.deviation[0] == 1
    assert np.isclose(got.deviation[1], inputs[:, 1].std(dtype=np.float64))
    assert standardise(inputs[:, :1], 1.0, per_feature=False).deviation == 1


def test_scaling_rounds_every_step_on_its_own() -> None:
    scaling = Scaling(255.0, np.array([0.2860]), np.array([0.3530]))
    got = scaling.apply(np.arange(256, dtype=np.uint8)[:, None])
    mean, deviation = np.float32(0.2860), np.float32(0.3530)
    want = [(np.float32(v) / np.float32(255) - mean) / deviation for v in range(256)]
    assert got.dtype == np.float32
    assert got.shape == (256, 1)
    assert got[:, 0].tobytes() == np.array(want, np.float32).tobytes()
    # Doing it in double precision and rounding once gives other bits, so the order matters.
    late = scaling.apply(np.arange(256, dtype=np.uint8)[:, None], np.float64).astype(np.float32)
    assert (got != late).any()
    assert np.allclose(got, late, atol=1e-6)


# ------------------------------------------------------------------------------------------ femnist


class Writer(NamedTuple):
    name: str
    samples: int


def write_femnist(folder: Path, prefix: str = "fed_emnist") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "train": [Writer("f2", 3), Writer("f10", 2), Writer("e", 0)],
        "test": [Writer("f2", 1), Writer("f10", 1)],
    }
    for part, members in writers.items():
        random = np.random.default_rng(len(members))
        with h5py.File(folder / f"{prefix}_{part}.h5", "w") as file:
            file.create_group("examples")
            for name, n in members:
                file[f"examples/{name}/pixels"] = random.random((n, 28, 28), np.float32)
                file[f"examples/{name}/label"] = np.arange(n, dtype=np.int32) + len(name)
    return folder


@pytest.mark.parametrize(("prefix", "classes"), [("fed_emnist", 62), ("fed_emnist_digitsonly", 10)])
def test_femnist(tmp_path: Path, prefix: str, classes: int) -> None:
    got = sources.load(dataset("femnist", write_femnist(tmp_path, prefix)))
    assert got.classes == classes
    # "f10" sorts before "f2"; "e" has no samples and is no writer.
    assert got.sites is not None
    assert got.sites.tolist() == [0, 0, 1, 1, 1]
    assert got.train_labels.tolist() == [3, 4, 2, 3, 4]
    assert got.test_labels.tolist() == [3, 2]
    assert got.train_inputs.dtype == np.float32
    assert got.train_inputs.shape == (5, 784)
    with h5py.File(tmp_path / f"{prefix}_train.h5") as file:
        assert np.array_equal(got.train_inputs[2], file["examples/f2/pixels"][0].ravel())
    wide = got.train_inputs.astype(np.float64)
    assert got.scaling.divisor == 1
    assert np.allclose(got.scaling.mean, wide.mean())
    assert np.allclose(got.scaling.deviation, wide.std())


def test_femnist_is_found_in_the_cache_or_explained(cache: Path) -> None:
    with refused("femnist not found in .*fed_emnist_train.h5.*dataset.root"):
        sources.load(dataset("femnist"))
    write_femnist(cache / "femnist")
    assert sources.locate(dataset("femnist"))["test"] == cache / "femnist" / "fed_emnist_test.h5"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_femnist_values_must_be_finite(tmp_path: Path, value: float) -> None:
    write_femnist(tmp_path)
    pixels = np.zeros((3, 28, 28))
    pixels[1, 5, 5] = value
    with h5py.File(tmp_path / "fed_emnist_train.h5", "a") as file:
        del file["examples/f2/pixels"]
        file["examples/f2/pixels"] = pixels
    # f10 has samples 0 and 1.
    with refused("data set femnist: .*finite.*training sample 3"):
        sources.load(dataset("femnist", tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("examples", None, "must have a group /examples"),
        ("examples", np.zeros(3), "must have a group /examples"),
        ("examples/f2", np.zeros(3), "'f2' must be a group with data sets pixels and label"),
        ("examples/f2/label", None, "'f2' must be a group with data sets pixels and label"),
        ("examples/f2/pixels", np.zeros((3, 784)), r"must be \[n, 28, 28\] floats, got \(3, 784\)"),
        ("examples/f2/pixels", np.zeros((3, 28, 28), "u1"), "floats, got .* uint8"),
        ("examples/f2/pixels", np.float32(1), "floats, got .*float32"),
        ("examples/f2/label", np.zeros(2, int), r"must be \(3,\) integers.*got \(2,\) int64"),
        ("examples/f2/label", np.zeros(3), r"must be \(3,\) integers.*got \(3,\) float64"),
        ("examples/f2/label", np.array([1, 62, 2]), "in 0..61, got 62 at training sample 3"),
        ("examples/f2/label", np.array([1, -1, 2]), "in 0..61, got -1 at training sample 3"),
    ],
)
def test_femnist_of_another_layout(
    tmp_path: Path, key: str, value: np.ndarray | None, message: str
) -> None:
    write_femnist(tmp_path)
    with h5py.File(tmp_path / "fed_emnist_train.h5", "a") as file:
        del file[key]
        if value is not None:
            file[key] = value
    with refused(message) as raised:
        sources.load(dataset("femnist", tmp_path))
    assert "\n" not in str(raised.value)


def test_femnist_without_samples(tmp_path: Path) -> None:
    write_femnist(tmp_path)
    with h5py.File(tmp_path / "fed_emnist_train.h5", "a") as file:
        del file["examples/f2"], file["examples/f10"]
    with refused("must have training samples, got none"):
        sources.load(dataset("femnist", tmp_path))


def test_femnist_that_promises_more_than_its_size_allows(tmp_path: Path) -> None:
    path = tmp_path / "fed_emnist_train.h5"
    with h5py.File(path, "w") as file:
        writer = file.create_group("examples/a")
        writer.create_dataset("pixels", (10**9, 28, 28), "f4", chunks=(1, 28, 28))
        writer.create_dataset("label", (10**9,), "i4", chunks=(64,))
    with refused("promises 1000000000 images"):
        femnist.read(path)


@examples(250)
@given(data=st.data())
def test_damaged_femnist_is_refused_or_valid(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "femnist"
    path = folder / "fed_emnist_train.h5"
    if not path.exists():
        write_femnist(folder)
    content = path.read_bytes()
    damaged = folder / "damaged_train.h5"
    damaged.write_bytes(damage(content, data))
    try:
        got = femnist.read(damaged)
    except InputError:
        return
    # HDF5 has no check sums of its own here; whatever was read must still fit together.
    assert got.pixels.shape == (len(got.labels), 784)
    assert got.writers.shape == got.labels.shape


# ------------------------------------------------------------------------------ catalogue, download


def test_catalogue(cache: Path) -> None:
    entries = {entry.name: entry for entry in sources.catalogue()}
    assert list(entries) == list(sources.DATASETS)
    assert entries["mnist"].where == "python -m mpi_ntkdfl data fetch mnist"
    assert not entries["femnist"].found
    bundled = [name for name, entry in entries.items() if entry.bundled]
    assert bundled[:3] == ["digits", "breast-cancer", "heart-disease"]
    for name in bundled:
        entry, got = entries[name], sources.load(dataset_settings(name))
        assert entry.found
        assert (entry.size.train, entry.size.features) == got.train_inputs.shape
        assert (entry.size.test, entry.size.classes) == (len(got.test_labels), got.classes)
    folder = write_set(cache / "mnist")
    entries = {entry.name: entry for entry in sources.catalogue()}
    assert (entries["mnist"].found, entries["mnist"].where) == (True, str(folder))


class Server(NamedTuple):
    """A server of four IDX files on this machine, and the requests it got."""

    address: str
    folder: Path
    requests: list[str]

    def image_set(self, **hashes: Hashes) -> ImageSet:
        right = {}
        for part, file in FILES.items():
            packed = (self.folder / f"{file}.gz").read_bytes()
            right[part] = Hashes(
                hashlib.md5(packed).hexdigest(),  # noqa: S324 - what the publishers give
                hashlib.sha256(gzip.decompress(packed)).hexdigest(),
            )
        return ImageSet("mnist", "none", self.address, "MNIST", 0.0, 1.0, right | hashes)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = write_set(tmp_path / "served")
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            requests.append(self.path)

    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_address[1]}/", folder, requests)
        http.shutdown()
        thread.join()


def test_fetch_fills_the_cache_where_load_looks(server: Server, cache: Path) -> None:
    folder = server.image_set().fetch()
    assert folder == cache / "mnist"
    assert len(server.requests) == 4
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{file}.gz" for file in FILES.values()
    )
    assert np.array_equal(sources.load(dataset("mnist")).train_inputs, IMAGES.reshape(12, 784))


def test_fetch_gets_only_what_is_missing_or_damaged(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    server.image_set().fetch(str(root))
    server.requests.clear()
    (root / "t10k-images-idx3-ubyte.gz").unlink()
    (root / "train-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    assert server.image_set().fetch(str(root)) == root
    assert server.requests == ["/train-labels-idx1-ubyte.gz", "/t10k-images-idx3-ubyte.gz"]
    assert np.array_equal(sources.load(dataset("mnist", root)).train_labels, LABELS)


@pytest.mark.parametrize(("wrong", "message"), [("md5", "hash"), ("sha256", "SHA-256")])
def test_fetch_refuses_a_wrong_hash(
    server: Server, tmp_path: Path, wrong: str, message: str
) -> None:
    right = server.image_set().hashes["test_images"]
    image_set = server.image_set(
        test_images=right._replace(**{wrong: "0" * len(getattr(right, wrong))})
    )
    with refused(f"t10k-images.*{message}.*by hand") as raised:
        image_set.fetch(str(tmp_path / "got"))
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]


def test_fetch_of_a_file_the_server_lacks(server: Server, tmp_path: Path) -> None:
    image_set = server.image_set()
    (server.folder / "train-images-idx3-ubyte.gz").unlink()
    with refused("cannot fetch .*404.*by hand"):
        image_set.fetch(str(tmp_path / "got"))
    assert not list((tmp_path / "got").iterdir())


def test_fetch_from_a_server_that_is_not_there(server: Server, tmp_path: Path) -> None:
    # Port 9 discards; nobody listens there on this machine.
    image_set = server._replace(address="http://127.0.0.1:9/").image_set()
    with refused("cannot fetch http://127.0.0.1:9/train-images.*by hand into .*dataset.root"):
        image_set.fetch(str(tmp_path / "got"))
    assert not list((tmp_path / "got").iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("femnist", "fed_emnist.tar.bz2"),
        ("digits", "inside scikit-learn"),
    ],
)
def test_fetch_of_what_cannot_be_fetched(name: str, message: str) -> None:
    with refused(f"mnist and fashion-mnist and cifar10, got {name}: .*{message}"):
        sources.fetch(name)
    with refused("unknown data set 'fashionmnist'; did you mean 'fashion-mnist'"):
        sources.fetch("fashionmnist")


def test_fetch_into_what_is_no_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("cannot write to"):
        server.image_set().fetch(str(tmp_path / "file"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused("needs the Python package scikit-learn"):
        sources.load(dataset("digits"))
