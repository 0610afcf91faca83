"""The data set `arrays`: a user's own file, in every form that is allowed, and what is refused."""

from __future__ import annotations

import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from mpi_ntkdfl.config import dataset_settings
from mpi_ntkdfl.data import array_files, sources
from mpi_ntkdfl.runtime.errors import InputError
from tests.conftest import MANY
from tests.test_cli import answer, complaint

RANDOM = np.random.default_rng(3)


def table(samples=60, features=4, classes=3):
    """A table with classes that can be told apart, in two sites."""
    y = np.arange(samples) % classes
    x = RANDOM.standard_normal((samples, features)) + 2 * y[:, None]
    site, cut = np.array(["north", "south"])[(np.arange(samples) % 5) // 3], 2 * samples // 3
    return {
        "x_train": x[:cut],
        "y_train": y[:cut],
        "x_test": x[cut:],
        "y_test": y[cut:],
        "site_train": site[:cut],
        "site_test": site[cut:],
    }


def write(path, arrays, **options):
    """Writes arrays as `path`, whose name tells the format."""
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                text = np.asarray(array).dtype.kind == "U"
                data = np.asarray(array, h5py.string_dtype()) if text else array
                file.create_dataset(name, data=data, **(options if np.ndim(data) else {}))
    else:
        np.savez(path, **arrays)
    return path


def load(path, **settings):
    return sources.load(dataset_settings("arrays", path=str(path), **settings))


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_table_with_labels_that_are_mapped_and_sites(tmp_path, suffix):
    arrays = table()
    labels = np.array([7, 9, 12])
    for part in ("train", "test"):
        arrays[f"y_{part}"] = labels[arrays[f"y_{part}"]].astype(">i2")
        arrays[f"x_{part}"] = arrays[f"x_{part}"].astype(">f8")
    got = load(write(tmp_path / f"a{suffix}", arrays))
    assert got.train_inputs.dtype == np.float32
    assert np.array_equal(got.train_inputs, arrays["x_train"].astype("f4"))
    assert np.array_equal(labels[got.train_labels], arrays["y_train"])
    assert (got.classes, got.class_names) == (3, ("7", "9", "12"))
    assert got.site_names == ("north", "south")
    assert np.array_equal(np.array(got.site_names)[got.test_sites], arrays["site_test"])
    assert np.allclose(got.scaling.apply(got.train_inputs).mean(axis=0), 0, atol=1e-6)


def pictures(channels):
    x = RANDOM.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    y = np.arange(12) % 2
    shown = x if channels == "first" else np.moveaxis(x, 1, 3)
    return x, {"x_train": shown[:8], "y_train": y[:8], "x_test": shown[8:], "y_test": y[8:]}


@pytest.mark.parametrize("channels", ["first", "last"])
def test_pictures_of_bytes_both_ways_round(tmp_path, channels):
    x, arrays = pictures(channels)
    path = write(tmp_path / "a.npz", arrays)
    got = load(path, channels=channels, standardize="none")
    assert (got.shape, got.train_inputs.dtype) == ((3, 32, 32), np.uint8)
    assert np.array_equal(got.train_inputs, x[:8].reshape(8, -1))
    assert got.scaling.grid() == (0, 1)  # so that bytes can be multiplied as bytes
    with pytest.raises(InputError, match="set dataset.channels=first for pictures"):
        load(path)


def test_grey_pictures_get_a_channel_if_asked(tmp_path):
    arrays = {"x_train": np.eye(6).reshape(6, 2, 3), "y_train": [0, 1] * 3}
    arrays |= {"x_test": np.ones((2, 2, 3)), "y_test": [0, 1]}
    path = write(tmp_path / "a.npz", arrays)
    assert (load(path).shape, load(path, channels="last").shape) == ((2, 3), (1, 2, 3))


def is_mapped(array):
    return isinstance(array, np.memmap) or (
        array is not None and is_mapped(getattr(array, "base", None))
    )


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("dtype", ["f4", "u1"])
def test_large_arrays_are_mapped_and_not_read(tmp_path, monkeypatch, suffix, dtype):
    arrays = {**table(), "site_train": np.zeros(40, int), "site_test": np.zeros(20, int)}
    for key in ("x_train", "x_test"):
        arrays[key] = np.abs(arrays[key]).astype(dtype)
    path = write(tmp_path / f"a{suffix}", arrays)
    read = load(path)
    monkeypatch.setattr(array_files, "LEAST_MAPPED", 100)
    mapped = load(path)
    assert is_mapped(mapped.train_inputs)
    assert not is_mapped(read.train_inputs)
    assert mapped.fingerprint() == read.fingerprint()


def test_a_chunked_h5_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "LEAST_MAPPED", 1)
    whole = load(write(tmp_path / "a.h5", table()))
    packed = load(write(tmp_path / "b.h5", table() | {}, compression="gzip"))
    assert whole.train_inputs.shape == packed.train_inputs.shape
    assert not is_mapped(packed.train_inputs)


# -------------------------------------------------------------------------------------- what is wrong

SOUND = table()
WITH_NAN, WITH_INF = SOUND["x_train"].copy(), SOUND["x_test"].copy()
WITH_NAN[3, 1], WITH_INF[2, 0] = np.nan, np.inf
WRONG = {
    "nan": ({"x_train": WITH_NAN}, "values must be finite.*training sample 3"),
    "infinity": ({"x_test": WITH_INF}, "values must be finite.*test sample 2"),
    "length": (
        {"y_train": SOUND["y_train"][1:]},
        r"y_train must have one entry for each of the 40",
    ),
    "test length": (
        {"x_test": SOUND["x_test"][1:]},
        "y_test must have one entry for each of the 19",
    ),
    "missing class": (
        {"y_train": SOUND["y_train"] % 2},
        "y_test has 2 at sample .*no training sample",
    ),
    "one class": (
        {"y_train": np.ones(40, int)},
        "y_train must have at least two classes, got only 1",
    ),
    "shape": ({"x_test": SOUND["x_test"][:, 1:]}, r"samples of one shape, got \(4,\) and \(3,\)"),
    "flat": ({"x_train": SOUND["y_train"]}, r"x_train must be numbers \[sample, ...\]"),
    "text": ({"x_train": SOUND["x_train"].astype(str)}, r"x_train must be numbers"),
    "complex": (
        {"x_train": SOUND["x_train"] * 1j},
        "x_train must be an array of numbers.*complex128",
    ),
    "regression": (
        {"y_train": SOUND["x_train"][:, 0]},
        "whole numbers or text.*regression targets are not",
    ),
    "nan label": ({"y_test": np.full(20, np.nan)}, "y_test must be whole numbers or text, got nan"),
    "one-hot": ({"y_train": np.eye(3)[SOUND["y_train"]]}, r"rows of 3: give the class.*argmax"),
    "missing array": ({"y_test": None}, "it lacks y_test"),
    "misspelt": ({"x_trian": [1]}, "an array 'x_trian', which is not used; did you mean 'x_train'"),
    "site length": ({"site_train": ["a"]}, r"site_train must have one entry for each of the 40"),
    "site of test only": ({"site_train": None}, "site_test needs site_train"),
    "new site": ({"site_test": ["west"] * 20}, "site_test has west at sample 0"),
    "no samples": (
        {"x_train": np.zeros((0, 4)), "y_train": []},
        "x_train must be numbers .* at least one",
    ),
    "copied test": (
        {f"{a}_test": SOUND[f"{a}_train"] for a in ("x", "y", "site")},
        "test samples must differ",
    ),
    "classes": ({"classes": 2}, "labels must be in 0..1, got 2"),
    "classes of text": ({"classes": "two"}, "classes must be a number from 1"),
}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_wrong(tmp_path, name, suffix):
    changes, message = WRONG[name]
    arrays = {k: np.asarray(v) for k, v in (SOUND | changes).items() if v is not None}
    path = write(tmp_path / f"a{suffix}", arrays)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    sound = write(tmp_path / "sound.npz", SOUND)
    objects = tmp_path / "objects.npz"
    np.savez(objects, **(SOUND | {"y_train": np.array([{}] * 40, object)}))
    pickled = tmp_path / "pickle.npz"
    pickled.write_bytes(pickle.dumps(SOUND))
    with zipfile.ZipFile(tmp_path / "pickle2.npz", "w") as archive:
        archive.writestr("x_train.npy", pickle.dumps(1))
    np.save(tmp_path / "one.npy", np.eye(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "cut.npz").write_bytes(sound.read_bytes()[:-300])
    spoilt = bytearray(sound.read_bytes())
    spoilt[400] ^= 1
    (tmp_path / "spoilt.npz").write_bytes(bytes(spoilt))
    (tmp_path / "cut.h5").write_bytes(write(tmp_path / "a.h5", SOUND).read_bytes()[:-3000])
    (tmp_path / "table.csv").write_text("1,2")
    (tmp_path / "folder.npz").mkdir()
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("x_train/inner")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("x_train", (10**9, 9), "f8", chunks=(64, 9))
    for name, message in {
        "objects.npz": "Python objects, which are refused",
        "pickle.npz": "no zip archive",
        "pickle2.npz": "not a readable .npz file",
        "one.npz": "an .npy file has one array",
        "cut.npz": "not a readable .npz file",
        "spoilt.npz": "not a readable .npz file.*CRC",
        "cut.h5": "not a readable .h5 file",
        "table.csv": "must end in .npz or .h5, got '.csv'",
        "folder.npz": "is a folder",
        "none.npz": "does not exist: set dataset.path",
        "group.h5": "x_train must be a dataset",
        "huge.h5": "x_train promises 72000000000 bytes",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "allow_pickle" not in str(caught.value)


def test_settings_that_are_wrong(tmp_path):
    path = write(tmp_path / "a.npz", SOUND)
    for settings, message in (
        ({"channels": "first"}, r"channels is for pictures.*got samples of shape \(4,\)"),
        ({"channels": "middle"}, "channels"),
        ({"standardize": [0, 0]}, "a deviation above 0"),
        ({"root": "x"}, "unknown key"),
    ):
        with pytest.raises(InputError, match=message):
            load(path, **settings)
    with pytest.raises(InputError, match="path: Field required"):
        dataset_settings("arrays")


# -------------------------------------------------------------------------------------------- runs


def words(data, out, rounds, *options):
    sets = (
        *(f"rounds={rounds}", "clients=4", f"dataset={{name: arrays, path: {data}}}"),
        *("partition={kind: site, per_site: 2}", "topology={kind: ring}", "model.hidden=[5]"),
        "algorithm={name: ntk-dfl, taus: [20]}",
    )
    given = [word for each in sets for word in ("--set", each)]
    return ["run", "quickstart", *given, "-q", "-o", str(out), *options]


def weights(record):
    with h5py.File(record.with_suffix(".ckpt.h5")) as file:
        return file["params"][:]


def test_a_run_on_arrays_resumes_with_the_same_bits_and_refuses_a_changed_file(tmp_path):
    data = write(
        tmp_path / "a.npz",
        table()
        | {"y_train": np.array(list("abc") * 14)[:40]}
        | {"y_test": np.array(list("abc") * 7)[:20]},
    )
    whole, half = tmp_path / "whole.h5", tmp_path / "half.h5"
    answer(*words(data, whole, 3))
    answer(*words(data, half, 1))
    answer(*words(data, half, 3, "--resume"))
    assert np.array_equal(weights(whole), weights(half))
    with h5py.File(whole) as file:
        assert json.loads(file.attrs["class_names"]) == ["a", "b", "c"]
        assert json.loads(file.attrs["site_names"]) == ["north", "south"]
        labels, sites = file["partition/labels"][:], file["partition/sites"][:]
        assert len(labels) == len(sites) == len(file["partition/indices"])
        offsets = file["partition/offsets"][:]
        assert [set(sites[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)] == [
            *({0}, {0}, {1}, {1})
        ]
    moved = data.rename(tmp_path / "b.npz")
    answer(*words(moved, whole, 4, "--resume"))
    write(moved, table())
    assert "the data" in complaint(*words(moved, whole, 5, "--resume"))


@pytest.mark.slow
def test_three_ranks_have_the_same_bits(mpirun, tmp_path):
    data = write(tmp_path / "a.h5", table())
    one, three = tmp_path / "1.h5", tmp_path / "3.h5"
    answer(*words(data, one, 2))
    lines = [words(data, three, 1), words(data, three, 2, "--resume")]
    done = mpirun(3, "-c", MANY, json.dumps(lines))
    assert done.returncode == 0, done.stdout + done.stderr
    assert np.array_equal(weights(one), weights(three))
