"""The data sets: where their files are, how to get them, and their samples as arrays.

Image sets are kept as the bytes of their files; `Scaling` says what to feed to a network. Digits
and breast-cancer come inside scikit-learn and need no file. Everything here is meant to run on one
rank, which ships the arrays to the others.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import femnist, idx
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError

Labels = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

# Samples looked at together wherever a whole data set in double precision would be too much memory.
_BLOCK = 4096


@dataclass(frozen=True)
class Scaling:
    """From stored values to a network's inputs: (stored / divisor - mean) / deviation.

    The bits are reproducible if each step is done in the working precision and rounded on its own,
    in this order: round `divisor`, `mean` and `deviation` to the working precision, convert
    `stored`, divide, subtract, divide. Nothing may be fused, and no division may become a
    multiplication by a reciprocal, as GPU libraries do where the divisor is a plain number.

    Attributes:
        divisor: such as 255 for bytes.
        mean: [1] or [d] float64, one for all features or one a feature.
        deviation: [1] or [d] float64, never 0.
    """

    divisor: float
    mean: Reals
    deviation: Reals

    def apply(
        self, stored: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32
    ) -> npt.NDArray[Any]:
        """Inputs [n, d] of type `dtype` from `stored` [n, d]; the reference for the order."""
        inputs = stored.astype(dtype)
        inputs /= inputs.dtype.type(self.divisor)
        inputs -= self.mean.astype(dtype)
        inputs /= self.deviation.astype(dtype)
        return inputs

    def grid(self) -> tuple[float, float] | None:
        """(offset, step) such that inputs are (stored + offset) step; None if features differ."""
        if self.mean.size > 1 or self.deviation.size > 1:
            return None
        step = 1 / (self.divisor * float(self.deviation[0]))
        return -self.divisor * float(self.mean[0]), step


@dataclass(frozen=True)
class Dataset:
    """Training and test samples.

    Attributes:
        name: as in `DatasetSettings`.
        train_inputs: [n, d] as stored: uint8 (image sets, digits) or float32.
        train_labels: [n] int64, in 0..classes-1.
        test_inputs: [n_test, d], of the same type.
        test_labels: [n_test] int64.
        classes: number of classes.
        scaling: how stored values become inputs.
        writers: [n] int64, writer of each training sample, counted from 0 in the order of the
            writers' sorted names; None where the data set knows no writers.
    """

    name: str
    train_inputs: npt.NDArray[Any]
    train_labels: Labels
    test_inputs: npt.NDArray[Any]
    test_labels: Labels
    classes: int
    scaling: Scaling
    writers: Labels | None = None

    def fingerprint(self) -> str:
        """SHA-256 over all samples and labels, to tell data sets apart."""
        digest = hashlib.sha256()
        for array in (self.train_inputs, self.train_labels, self.test_inputs, self.test_labels):
            digest.update(f"{array.shape} {array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


# ---------------------------------------------------------------------------------- known data sets


class Hashes(NamedTuple):
    """`md5` of the published `.gz` file, `sha256` of what it holds once decompressed."""

    md5: str
    sha256: str


@dataclass(frozen=True)
class ImageSet:
    """A data set of four IDX files.

    Attributes:
        base: address of the folder with the files, ending in a slash.
        folder: what torchvision calls its folder.
        mean: mean of the training pixels after division by 255, as commonly used.
        deviation: their standard deviation.
        hashes: of each part, a key of `FILES`.
    """

    base: str
    folder: str
    mean: float
    deviation: float
    hashes: Mapping[str, Hashes]

    @property
    def scaling(self) -> Scaling:
        """From its bytes to inputs."""
        return Scaling(255.0, np.array([self.mean]), np.array([self.deviation]))


# Name of each part's file, without `.gz`.
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}

# MD5 is what the publishers give; it no longer withstands forgery, so SHA-256 is checked as well.
IMAGE_SETS: Mapping[str, ImageSet] = {
    "mnist": ImageSet(
        base="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folder="MNIST",
        mean=0.1307,
        deviation=0.3081,
        hashes={
            "train_images": Hashes(
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "train_labels": Hashes(
                "d53e105ee54ea40749a09fcbcd1e9432",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            "test_images": Hashes(
                "9fb629c4189551a2d022fa330f9573f3",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            "test_labels": Hashes(
                "ec29112dd5afa0611ce80d1b7f02629c",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        },
    ),
    "fashion-mnist": ImageSet(
        base="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        folder="FashionMNIST",
        mean=0.2860,
        deviation=0.3530,
        hashes={
            "train_images": Hashes(
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            "train_labels": Hashes(
                "25c81989df183df01b3e8a0aad5dffbe",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            "test_images": Hashes(
                "bef4ecab320f06d8554ea6380940ec79",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            "test_labels": Hashes(
                "bb300cfdad3c16e7a12a480ee83cd310",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        },
    ),
}

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")

_FEMNIST_HELP = (
    "fed_emnist_train.h5 and fed_emnist_test.h5 (or fed_emnist_digitsonly_*.h5, ten classes) come "
    "in https://storage.googleapis.com/tff-datasets-public/fed_emnist.tar.bz2: unpack it and "
    "set dataset.root to the folder"
)


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue; `where` is a folder if `found`, otherwise how to get the set."""

    name: str
    train_samples: int
    test_samples: int
    features: int
    classes: int
    found: bool
    where: str


_SIZES = {
    "digits": (1438, 359, 64, 10),
    "breast-cancer": (456, 113, 30, 2),
    "mnist": (60_000, 10_000, 784, 10),
    "fashion-mnist": (60_000, 10_000, 784, 10),
    "femnist": (671_585, 77_483, 784, 62),
}


def catalogue() -> list[Entry]:
    """All data sets, with the published sizes, and where this machine has them."""
    return [Entry(name, *sizes, *_whereabouts(name)) for name, sizes in _SIZES.items()]


def _whereabouts(name: str) -> tuple[bool, str]:
    try:
        paths = locate(DatasetSettings.model_validate({"name": name}))
    except InputError:
        fetchable = name in IMAGE_SETS
        return False, f"python -m mpi_ntkdfl data fetch {name}" if fetchable else _FEMNIST_HELP
    return True, str(next(iter(paths.values())).parent) if paths else "inside scikit-learn"


# ------------------------------------------------------------------------------------ finding files


def locate(settings: DatasetSettings) -> dict[str, Path]:
    """The files of a data set by part, without reading them; empty for the sets in scikit-learn.

    With `settings.root` only that folder is searched, and its torchvision subfolders.

    Raises:
        InputError: if a file is missing; the message lists the folders tried and the ways out.
    """
    if settings.name in IMAGE_SETS:
        return _locate_images(settings)
    if settings.name == "femnist":
        folder = _cache("femnist") if settings.root is None else Path(settings.root).expanduser()
        paths = femnist.find(folder)
        if paths is None:
            raise InputError(f"data set femnist not found in {folder}: {_FEMNIST_HELP}")
        return paths
    return {}


def _locate_images(settings: DatasetSettings) -> dict[str, Path]:
    tried = []
    for folder in _image_folders(settings):
        paths = {part: _variant(folder / file) for part, file in FILES.items()}
        missing = [FILES[part] for part, path in paths.items() if path is None]
        if not missing:
            return {part: path for part, path in paths.items() if path is not None}
        lacks = "nothing there" if len(missing) == len(FILES) else f"without {', '.join(missing)}"
        tried.append(f"{folder} ({lacks})")
    fashion = settings.name == "fashion-mnist"
    debian = ", install the Debian package dataset-fashion-mnist" if fashion else ""
    raise InputError(
        f"data set {settings.name} needs its four IDX files (plain or .gz) in one folder, tried "
        f"{', '.join(tried)}: run `python -m mpi_ntkdfl data fetch {settings.name}`{debian}, or "
        "set dataset.root to the folder that has them"
    )


def _image_folders(settings: DatasetSettings) -> list[Path]:
    if settings.root is not None:
        root = Path(settings.root).expanduser()
        return [root, root / IMAGE_SETS[settings.name].folder / "raw", root / "raw"]
    packaged = [DEBIAN_FASHION] if settings.name == "fashion-mnist" else []
    return [_cache(settings.name), *packaged]


def _variant(path: Path) -> Path | None:
    """The compressed file, else the plain one, else None."""
    return next((p for p in (path.with_name(f"{path.name}.gz"), path) if p.is_file()), None)


def _cache(name: str) -> Path:
    return Path(_need("pooch").os_cache("mpi_ntkdfl")).expanduser() / name


def _need(module: str) -> Any:
    # Imported where needed: both take long to import, and only one rank of a run needs them.
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module)
        raise InputError(
            f"this needs the Python package {package}, got {error}: install it"
        ) from error


# -------------------------------------------------------------------------------------- downloading


def fetch(name: str, root: str | None = None, table: Mapping[str, ImageSet] = IMAGE_SETS) -> Path:
    """Downloads the files of an image set that are not there yet or are damaged.

    A file gets its final name only once both its hashes are right.

    Args:
        name: mnist or fashion-mnist.
        root: folder for the files, by default the cache folder where `load` looks.
        table: the known image sets.

    Returns:
        The folder.

    Raises:
        InputError: if the data set cannot be fetched, the server cannot be reached, a hash is wrong
            or the folder cannot be written.
    """
    if name not in table:
        way = _FEMNIST_HELP if name == "femnist" else "it comes inside scikit-learn, just use it"
        if name not in _SIZES:
            way = f"there are {', '.join(_SIZES)}"
        raise InputError(f"fetch can download {' and '.join(table)}, got {name}: {way}")
    folder = _cache(name) if root is None else Path(root).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the move to the final name is atomic.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as staging:
            for part, hashes in table[name].hashes.items():
                target = folder / f"{FILES[part]}.gz"
                if not _is_sound(target, hashes):
                    _download(table[name].base, hashes, Path(staging), target)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror or error}; set another folder"
        ) from error
    return folder


def _is_sound(path: Path, hashes: Hashes) -> bool:
    try:
        return path.is_file() and idx.content_hash(path) == hashes.sha256
    except InputError:
        return False


def _download(base: str, hashes: Hashes, staging: Path, target: Path) -> None:
    url = f"{base}{target.name}"
    by_hand = (
        f"download it by hand into {target.parent} or set dataset.root to a folder that has it"
    )
    pooch = _need("pooch")
    try:
        pooch.retrieve(url, known_hash=f"md5:{hashes.md5}", fname=target.name, path=staging)
        got = idx.content_hash(staging / target.name)
    except (OSError, ValueError, InputError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split())
        raise InputError(f"cannot fetch {url}: {reason}; try again, {by_hand}") from error
    if got != hashes.sha256:
        raise InputError(
            f"{url} must have content of SHA-256 {hashes.sha256}, got {got}; {by_hand}"
        )
    # pooch's files are readable by their owner alone, but a folder may be shared by a group.
    (staging / target.name).chmod(0o644)
    (staging / target.name).replace(target)


# ------------------------------------------------------------------------------------------ loading


class _Samples(NamedTuple):
    inputs: npt.NDArray[Any]
    labels: Labels


class _Parts(NamedTuple):
    train: _Samples
    test: _Samples
    classes: int
    writers: Labels | None = None


def load(settings: DatasetSettings) -> Dataset:
    """Reads a data set and checks it.

    Raises:
        InputError: if a file is missing, damaged or not what it should be, a part has no samples, a
            value is not finite or a label is no class.
    """
    parts = _LOADERS[settings.name](settings)
    for kind, samples in (("training", parts.train), ("test", parts.test)):
        _check(f"data set {settings.name}", kind, samples, parts.classes)
    scaling = _scaling(settings.name, parts.train.inputs)
    return Dataset(settings.name, *parts.train, *parts.test, parts.classes, scaling, parts.writers)


def _check(name: str, kind: str, samples: _Samples, classes: int) -> None:
    if not len(samples.labels):
        raise InputError(f"{name} must have {kind} samples, got none")
    wrong = np.flatnonzero((samples.labels < 0) | (samples.labels >= classes))
    if len(wrong):
        raise InputError(
            f"{name}: labels must be in 0..{classes - 1}, got {samples.labels[wrong[0]]} at {kind} "
            f"sample {wrong[0]}; is it the right file?"
        )
    if samples.inputs.dtype.kind != "f":
        return
    for start in range(0, len(samples.labels), _BLOCK):
        finite = np.isfinite(samples.inputs[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{name}: values must be finite, got NaN or infinity in {kind} sample "
                f"{start + int(np.argmin(finite))}; get the file again"
            )


def _load_images(settings: DatasetSettings) -> _Parts:
    paths = locate(settings)
    _refuse_other_set(settings.name, paths["train_labels"])
    return _Parts(
        _read_images(paths["train_images"], paths["train_labels"]),
        _read_images(paths["test_images"], paths["test_labels"]),
        classes=10,
    )


def _read_images(images: Path, labels: Path) -> _Samples:
    pixels = idx.read(images, (None, 28, 28))
    classes = idx.read(labels, (None,))
    if len(pixels) != len(classes):
        raise InputError(
            f"{labels} must have a label for each of the {len(pixels)} images of {images.name}, "
            f"got {len(classes)}"
        )
    return _Samples(pixels.reshape(-1, femnist.PIXELS), classes.astype(np.int64))


def _refuse_other_set(name: str, train_labels: Path) -> None:
    """Catches MNIST given as Fashion-MNIST or the reverse: the files have the same names."""
    got = idx.content_hash(train_labels)
    for other, image_set in IMAGE_SETS.items():
        if other != name and got == image_set.hashes["train_labels"].sha256:
            raise InputError(
                f"data set {name}: {train_labels} is of {other}; set dataset.name or dataset.root"
            )


def _load_femnist(settings: DatasetSettings) -> _Parts:
    paths = locate(settings)
    train, test = femnist.read(paths["train"]), femnist.read(paths["test"])
    return _Parts(
        _Samples(train.pixels, train.labels),
        _Samples(test.pixels, test.labels),
        femnist.classes(paths["train"]),
        train.writers,
    )


def _load_digits(settings: DatasetSettings) -> _Parts:
    values, labels = _need("sklearn.datasets").load_digits(return_X_y=True)
    # The pixels are counts 0..16, so bytes hold them exactly.
    return _split(values.astype(np.uint8), labels.astype(np.int64))


def _load_breast_cancer(settings: DatasetSettings) -> _Parts:
    values, labels = _need("sklearn.datasets").load_breast_cancer(return_X_y=True)
    return _split(values.astype(np.float32), labels.astype(np.int64))


def _split(inputs: npt.NDArray[Any], labels: Labels) -> _Parts:
    """Splits off a fifth of each class for the test, the same for every seed of a run.

    Both parts keep the order of the original set.
    """
    random = seeds.generator(0, "split")
    in_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        in_test[members[: round(len(members) / 5)]] = True
    return _Parts(
        _Samples(inputs[~in_test], labels[~in_test]),
        _Samples(inputs[in_test], labels[in_test]),
        classes=int(labels.max()) + 1,
    )


_LOADERS: Mapping[str, Callable[[DatasetSettings], _Parts]] = {
    "digits": _load_digits,
    "breast-cancer": _load_breast_cancer,
    "mnist": _load_images,
    "fashion-mnist": _load_images,
    "femnist": _load_femnist,
}


# ------------------------------------------------------------------------------------------ scaling


def _scaling(name: str, inputs: npt.NDArray[Any]) -> Scaling:
    if name in IMAGE_SETS:
        return IMAGE_SETS[name].scaling
    return _standardise(
        inputs,
        divisor=16.0 if name == "digits" else 1.0,
        per_feature=name == "breast-cancer",
    )


def _standardise(inputs: npt.NDArray[Any], divisor: float, per_feature: bool) -> Scaling:
    """Mean and deviation of the training inputs [n, d], in float64 and in two passes.

    A feature that never changes gets deviation 1, so that its input is 0 and not 0 / 0.
    """

    def average(of: Callable[[Reals], Reals]) -> Reals:
        total = np.zeros(inputs.shape[1])
        for start in range(0, len(inputs), _BLOCK):
            total += of(inputs[start : start + _BLOCK].astype(np.float64) / divisor).sum(axis=0)
        total /= len(inputs)
        return total if per_feature else total.mean(keepdims=True)

    mean = average(lambda values: values)
    deviation = np.sqrt(average(lambda values: (values - mean) ** 2))
    # Exactly 0 for a constant feature: sums of equal float32 values are exact in float64.
    deviation[deviation == 0] = 1.0
    return Scaling(divisor, mean, deviation)
