"""Data sets that a user registers with a function, the loader, that returns arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import given
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.data.source import Source
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import did_you_mean

Loader = Callable[..., Mapping[str, Any]]


class RegisteredSettings(DatasetSettings):
    """Settings of a data set that a user registered.

    `measured` computes mean and deviation per feature for vectors, and over all values for samples with
    more dimensions.
    """

    options: dict[str, Any] = {}
    """Arguments of the loader, by name."""
    standardize: given.Standardize = "measured"
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
        arrays = self._call(f"data set {self.name}", settings.options)
        return given.build(self.name, arrays, settings.standardize)

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
        missing = [key for key in given.REQUIRED if key not in arrays]
        unused = [key for key in arrays if key not in (*given.REQUIRED, *given.OPTIONAL)]
        if missing or unused:
            raise InputError(
                f"{where}: its loader must return {', '.join(given.REQUIRED)}, and may return "
                f"{', '.join(given.OPTIONAL)}; it lacks {', '.join(missing) or 'none'} and has unknown "
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
