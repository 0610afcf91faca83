"""From arrays that a user gives to a data set: checks, conversion, classes, sites, scaling.

The arrays come from a file (`data.arrays`) or from a loader that a user registered (`data.registered`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from mpi_ntkdfl.data.dataset import Dataset, Labels, Scaling, standardise
from mpi_ntkdfl.runtime.errors import InputError

_log = logging.getLogger(__name__)

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("site_train", "site_test", "classes")
"""The names of the arrays."""

Channels = Literal["first", "last"]
"""Where the channels of a picture are: [channel, row, column] or [row, column, channel]."""

_MOST_CLASSES = 1_000_000


def _mean_and_deviation(value: object) -> object:
    if value in ("none", "measured"):
        return value
    numbers = (
        [n for n in value if type(n) in (int, float)] if isinstance(value, list | tuple) else []
    )
    if len(numbers) == 2 == len(value) and all(map(math.isfinite, numbers)) and numbers[1] > 0:  # type: ignore[arg-type]
        return float(numbers[0]), float(numbers[1])
    raise ValueError("expected none, measured, or [mean, deviation] with a deviation above 0")


Standardize = Annotated[
    Literal["none", "measured"] | tuple[float, float], BeforeValidator(_mean_and_deviation)
]
"""How values become inputs.

`none` uses the values as they are. `measured` subtracts the mean of the training samples and divides by
their standard deviation. [mean, deviation] uses these two numbers. `measured` computes both per feature
for vectors, and over all values for samples with more dimensions.
"""


def build(
    name: str,
    arrays: Mapping[str, Any],
    standardize: str | tuple[float, float],
    channels: Channels | None = None,
) -> Dataset:
    """Checks arrays and converts them.

    Args:
        name: name of the data set.
        arrays: the arrays named in `REQUIRED`, and some of those in `OPTIONAL`.
        standardize: as `Standardize`.
        channels: where the channels of pictures are; pictures [row, column] get one channel. None leaves
            samples as they are.

    Raises:
        InputError: if an array has the wrong type or shape, or labels or sites cannot be mapped. Whether
            values are finite is checked by `Dataset.check`.
    """
    where = f"data set {name}"
    train, test = (_inputs(f"{where}: {key}", arrays[key]) for key in ("x_train", "x_test"))
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{where}: x_train and x_test must have samples of one shape, got "
            f"{train.shape[1:]} and {test.shape[1:]}"
        )
    if train.dtype != test.dtype:
        train, test = _real(train), _real(test)
    if channels is not None:
        train, test = (
            _channels_first(where, train, channels),
            _channels_first(where, test, channels),
        )
    labels, names = _labels(where, arrays, len(train), len(test))
    sites, site_names = _sites(where, arrays, len(train), len(test))
    flat = train.reshape(len(train), -1)
    return Dataset(
        name,
        *(flat, labels[0], test.reshape(len(test), -1), labels[1], len(names)),
        _scaling(standardize, flat, len(train.shape) == 2),
        *sites,
        shape=train.shape[1:],
        class_names=tuple(map(str, names)),
        site_names=site_names,
    )


def _array(where: str, value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:  # for example lists of different lengths, or tensors on a GPU
        raise InputError(f"{where} is no array: {' '.join(str(error).split())}") from error
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where} has text that is not UTF-8: {error}") from error
    if array.dtype.kind not in "biufU":
        raise InputError(
            f"{where} must be an array of numbers, or of text for labels and sites, got {array.dtype}"
        )
    return array


def _inputs(where: str, value: Any) -> npt.NDArray[Any]:
    """Samples [n, *shape]: bytes stay bytes, other numbers become float32."""
    array = _array(where, value)
    if array.dtype.kind == "U" or array.ndim < 2 or not array.size:
        raise InputError(
            f"{where} must be numbers [sample, ...] with at least one sample and one number per "
            f"sample, got {array.dtype} {array.shape}"
        )
    return array if array.dtype == np.uint8 else _real(array)


def _real(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The values as float32; an array that has this type is not copied, since it may be a large file."""
    # A value beyond float32 becomes infinite here. The check of all samples refuses it.
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _channels_first(where: str, array: npt.NDArray[Any], channels: Channels) -> npt.NDArray[Any]:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise InputError(
            f"{where}: channels is for pictures, whose samples have 2 or 3 dimensions, got samples of "
            f"shape {array.shape[1:]}: leave channels out"
        )
    return array if channels == "first" else np.ascontiguousarray(np.moveaxis(array, 3, 1))


def _per_sample(where: str, value: Any, samples: int) -> npt.NDArray[Any]:
    array = _array(where, value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and len(array) == samples:
        raise InputError(
            f"{where} must have one entry for each of the {samples} samples, got rows of "
            f"{array.shape[1]}: give the class of each sample, such as rows.argmax(axis=1) of one-hot "
            "rows"
        )
    if array.shape != (samples,):
        raise InputError(
            f"{where} must have one entry for each of the {samples} samples, got {array.shape}"
        )
    if array.dtype.kind != "f":
        return array
    wrong = np.flatnonzero(~(array == np.round(array)) | ~np.isfinite(array))
    if len(wrong):
        raise InputError(
            f"{where} must be whole numbers or text, got {array[wrong[0]]} at sample {wrong[0]}. All "
            "networks here are classifiers, and regression targets are not possible: cut the target into "
            "classes, such as np.digitize(y, bounds). With algorithm.loss=squared, methods that have "
            "this setting then fit the one-hot vectors of the classes by least squares"
        )
    return array.astype(np.int64)


def _labels(
    where: str, arrays: Mapping[str, Any], train: int, test: int
) -> tuple[tuple[Labels, Labels], npt.NDArray[Any]]:
    """Labels of both parts as classes counted from 0, and the label of each class."""
    labels = (
        _per_sample(f"{where}: y_train", arrays["y_train"], train),
        _per_sample(f"{where}: y_test", arrays["y_test"], test),
    )
    if arrays.get("classes") is not None:
        count = _classes(where, arrays["classes"], labels)
        return (labels[0].astype(np.int64), labels[1].astype(np.int64)), np.arange(count)
    names = np.unique(labels[0])
    if len(names) < 2:
        raise InputError(
            f"{where}: y_train must have at least two classes, got only {names[0]!s}: give samples of "
            "another class, or `classes`, the number of classes with labels 0..classes-1"
        )
    if not np.array_equal(names, np.arange(len(names))):
        shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
        _log.info("%s: labels %s became classes 0 to %d", where, shown, len(names) - 1)
    mapped = (
        _mapped(f"{where}: y_train", labels[0], names),
        _mapped(f"{where}: y_test", labels[1], names),
    )
    return mapped, names


def _classes(where: str, given: Any, labels: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> int:
    """The number of classes that a user gives: a number, or an array of one number."""
    count = given.reshape(-1)[0] if isinstance(given, np.ndarray) and given.size == 1 else given
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or not 1 <= count <= _MOST_CLASSES or any(y.dtype.kind == "U" for y in labels):
        raise InputError(
            f"{where}: classes must be a number from 1 to {_MOST_CLASSES}, with labels 0..classes-1, got "
            f"{count!r} and labels {labels[0].dtype}"
        )
    return int(count)


def _mapped(where: str, values: npt.NDArray[Any], names: npt.NDArray[Any]) -> Labels:
    """Indices [n] of `values` in the sorted `names` of the training samples."""
    if values.dtype.kind != names.dtype.kind and "U" in (values.dtype.kind, names.dtype.kind):
        raise InputError(f"{where} must be of one type in training and test, got {values.dtype}")
    places = np.searchsorted(names, values).clip(0, len(names) - 1)
    wrong = np.flatnonzero(names[places] != values)
    if len(wrong):
        raise InputError(
            f"{where} has {values[wrong[0]]!s} at sample {wrong[0]}, which no training sample has; "
            "leave the sample out, or return `classes` if the labels are 0..classes-1"
        )
    return places.astype(np.int64)


def _sites(
    where: str, arrays: Mapping[str, Any], train: int, test: int
) -> tuple[tuple[Labels | None, Labels | None], tuple[str, ...]]:
    """Sites of both parts, counted from 0 in the order of their sorted names, and these names."""
    given = [arrays.get(key) for key in ("site_train", "site_test")]
    if given[0] is None:
        if given[1] is not None:
            raise InputError(f"{where}: site_test needs site_train, got none")
        return (None, None), ()
    sites = _per_sample(f"{where}: site_train", given[0], train)
    names = np.unique(sites)
    shown = tuple(map(str, names))
    mine = _mapped(f"{where}: site_train", sites, names)
    if given[1] is None:
        return (mine, None), shown
    key = f"{where}: site_test"
    return (mine, _mapped(key, _per_sample(key, given[1], test), names)), shown


def _scaling(
    standardize: str | tuple[float, float], train: npt.NDArray[Any], per_feature: bool
) -> Scaling:
    if standardize == "measured":
        # With a value that is not finite the scaling is useless. The check of all samples reports it.
        with np.errstate(invalid="ignore", over="ignore"):
            return standardise(train, divisor=1.0, per_feature=per_feature)
    mean, deviation = (0.0, 1.0) if isinstance(standardize, str) else standardize
    return Scaling(1.0, np.array([mean]), np.array([deviation]))
