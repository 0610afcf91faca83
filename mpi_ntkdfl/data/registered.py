"""Data sets that a user registers with a function, the loader, that returns arrays."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data.dataset import Dataset, Labels, Scaling, standardise
from mpi_ntkdfl.data.source import Source
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import did_you_mean

_log = logging.getLogger(__name__)

Loader = Callable[..., Mapping[str, Any]]

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("site_train", "site_test", "classes")


def _mean_and_deviation(value: object) -> object:
    if value in ("none", "measured"):
        return value
    numbers = (
        [n for n in value if type(n) in (int, float)] if isinstance(value, list | tuple) else []
    )
    if len(numbers) == 2 == len(value) and all(map(math.isfinite, numbers)) and numbers[1] > 0:  # type: ignore[arg-type]
        return float(numbers[0]), float(numbers[1])
    raise ValueError("expected none, measured, or [mean, deviation] with a deviation above 0")


class RegisteredSettings(DatasetSettings):
    """Settings of a data set that a user registered.

    `measured` computes mean and deviation per feature for vectors, and over all values for samples with
    more dimensions.
    """

    options: dict[str, Any] = {}
    """Arguments of the loader, by name."""
    standardize: Annotated[
        Literal["none", "measured"] | tuple[float, float], BeforeValidator(_mean_and_deviation)
    ] = "measured"
    """`none` uses the values as they are. `measured` subtracts the mean of the training samples and
    divides by their standard deviation. [mean, deviation] uses these two numbers.
    """


class Registered(Source[RegisteredSettings]):
    """A data set of a user's loader; see `register_dataset` in `data.sources`."""

    Settings = RegisteredSettings
    licence = "see its owner"
    way_out = "its loader provides the samples"

    def __init__(self, name: str, loader: Loader) -> None:
        """Keeps the loader; nothing is loaded yet."""
        self.name, self.loader = name, loader
        self._contents: dict[str, str] = {}  # by settings

    def load(self, settings: RegisteredSettings) -> Dataset:
        """Calls the loader, and checks and converts what it returns."""
        where = f"data set {self.name}"
        arrays = self._call(where, settings.options)
        train, test = (_inputs(f"{where}: {key}", arrays[key]) for key in ("x_train", "x_test"))
        if train.shape[1:] != test.shape[1:]:
            raise InputError(
                f"{where}: x_train and x_test must have samples of one shape, got "
                f"{train.shape[1:]} and {test.shape[1:]}"
            )
        if train.dtype != test.dtype:
            train, test = train.astype(np.float32), test.astype(np.float32)
        labels, classes = _labels(where, arrays, len(train), len(test))
        sites = _sites(where, arrays, len(train), len(test))
        flat = train.reshape(len(train), -1)
        return Dataset(
            self.name,
            *(flat, labels[0], test.reshape(len(test), -1), labels[1], classes),
            _scaling(settings.standardize, flat, len(train.shape) == 2),
            *sites,
            shape=train.shape[1:],
        )

    def content(self, settings: RegisteredSettings) -> str:
        """Fingerprint of the samples. The loader is called, because it may read any files."""
        key = settings.model_dump_json()
        if key not in self._contents:
            self._contents[key] = self.load(settings).fingerprint()
        return self._contents[key]

    def _call(self, where: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        _require_taken(where, self.loader, options)
        try:
            arrays = self.loader(**options)
        except Exception as error:
            raise InputError(f"{where}: its loader fails: {plugins.failure(error)}") from error
        if not isinstance(arrays, Mapping):
            raise InputError(
                f"{where}: its loader must return a mapping, got {type(arrays).__name__}"
            )
        missing = [key for key in _REQUIRED if key not in arrays]
        unused = [key for key in arrays if key not in (*_REQUIRED, *_OPTIONAL)]
        if missing or unused:
            raise InputError(
                f"{where}: its loader must return {', '.join(_REQUIRED)}, and may return "
                f"{', '.join(_OPTIONAL)}; it lacks {', '.join(missing) or 'none'} and has unknown "
                f"{', '.join(map(str, unused)) or 'none'}"
            )
        return arrays


def _require_taken(where: str, loader: Loader, options: Mapping[str, Any]) -> None:
    """Refuses options that the loader does not have as parameters, and missing required options."""
    try:
        signature = inspect.signature(loader)
    except ValueError:
        return  # the parameters of a function of a C extension cannot be listed
    try:
        signature.bind(**options)
    except TypeError as error:
        wrong = [key for key in options if key not in signature.parameters]
        reason = f"unknown {wrong[0]!r}" if wrong else str(error)
        hint = did_you_mean(wrong[0], signature.parameters) if wrong else ""
        raise InputError(
            f"{where}: its loader does not take these dataset.options: {reason}{hint}"
        ) from error


def _array(where: str, value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:  # for example lists of different lengths, or tensors on a GPU
        raise InputError(f"{where} is no array: {' '.join(str(error).split())}") from error
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
    # A value beyond float32 becomes infinite here. The check of all samples refuses it.
    with np.errstate(over="ignore"):
        return array if array.dtype == np.uint8 else array.astype(np.float32)


def _per_sample(where: str, value: Any, samples: int) -> npt.NDArray[Any]:
    array = _array(where, value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (samples,):
        raise InputError(
            f"{where} must have one entry for each of the {samples} samples, got {array.shape}"
        )
    if array.dtype.kind == "f":
        if not np.array_equal(array, np.round(array)):
            raise InputError(f"{where} must be whole numbers or text, got {array.dtype}")
        array = array.astype(np.int64)
    return array


def _labels(
    where: str, arrays: Mapping[str, Any], train: int, test: int
) -> tuple[tuple[Labels, Labels], int]:
    """Labels of both parts as classes counted from 0, and the number of classes."""
    labels = (
        _per_sample(f"{where}: y_train", arrays["y_train"], train),
        _per_sample(f"{where}: y_test", arrays["y_test"], test),
    )
    if arrays.get("classes") is not None:
        count = arrays["classes"]
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not whole or not 1 <= count <= 1_000_000 or any(y.dtype.kind == "U" for y in labels):
            raise InputError(
                f"{where}: classes must be a number from 1 to 1000000, with labels 0..classes-1, got "
                f"{count!r} and labels {labels[0].dtype}"
            )
        return (labels[0].astype(np.int64), labels[1].astype(np.int64)), int(count)
    names = np.unique(labels[0])
    if not np.array_equal(names, np.arange(len(names))):
        shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
        _log.info("%s: labels %s became classes 0 to %d", where, shown, len(names) - 1)
    return (
        _mapped(f"{where}: y_train", labels[0], names),
        _mapped(f"{where}: y_test", labels[1], names),
    ), len(names)


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
) -> tuple[Labels | None, Labels | None]:
    """Sites of both parts, counted from 0 in the order of their sorted names."""
    given = [arrays.get(key) for key in ("site_train", "site_test")]
    if given[0] is None:
        if given[1] is not None:
            raise InputError(f"{where}: site_test needs site_train, got none")
        return None, None
    sites = _per_sample(f"{where}: site_train", given[0], train)
    names = np.unique(sites)
    mine = _mapped(f"{where}: site_train", sites, names)
    if given[1] is None:
        return mine, None
    key = f"{where}: site_test"
    return mine, _mapped(key, _per_sample(key, given[1], test), names)


def _scaling(
    standardize: str | tuple[float, float], train: npt.NDArray[Any], per_feature: bool
) -> Scaling:
    if standardize == "measured":
        # With a value that is not finite the scaling is useless. The check of all samples reports it.
        with np.errstate(invalid="ignore", over="ignore"):
            return standardise(train, divisor=1.0, per_feature=per_feature)
    mean, deviation = (0.0, 1.0) if isinstance(standardize, str) else standardize
    return Scaling(1.0, np.array([mean]), np.array([deviation]))
