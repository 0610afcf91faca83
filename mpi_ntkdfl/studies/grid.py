"""From a study to its runs. A run is known by its configuration, whichever study asks for it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.config import Config, parse, read_overrides, read_source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.studies.definition import Definition, ScaleName, Variant, called, read

# No result depends on these, or in its last bits only.
_FREE = {
    "output": None,
    "dataset": ("root",),
    "compute": (
        *("device", "threads", "memory_limit", "batch", "byte_products", "gpu_aware_mpi"),
        "evolution",
    ),
}

_DIGITS = 16
"""Hexadecimal digits of a run's name: 64 bits, so that no two of a million runs share it."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        index: its place among the study's runs; all of one seed come before those of the next.
        cell: a variant of each axis, in the order of the axes.
        config: the complete configuration.
        outputs: where it is, or will be.
    """

    index: int
    cell: tuple[Variant, ...]
    config: Config
    outputs: Outputs

    @property
    def key(self) -> str:
        """Hash of its configuration, the name of its files."""
        return self.outputs.record.stem

    @property
    def label(self) -> str:
        """For people."""
        return f"{', '.join(v.label for v in self.cell)}, seed {self.config.seed}"


@dataclass(frozen=True)
class Study:
    """A study of some size, spelt out.

    Attributes:
        name: of its files.
        definition: of the study.
        scale: its size.
        seeds: how many.
        folder: where everything is.
        runs: all of them; a run that two cells share appears twice, under one key.
    """

    name: str
    definition: Definition
    scale: ScaleName
    seeds: int
    folder: Path
    runs: tuple[StudyRun, ...]

    @property
    def reports(self) -> Path:
        """The folder of its tables and figures."""
        return self.folder / f"{self.name}-{self.scale}"

    def distinct(self) -> list[StudyRun]:
        """One run of every key, in order."""
        return list({run.key: run for run in reversed(self.runs)}.values())[::-1]


def key(config: Config) -> str:
    """Hash of everything a run's result depends on."""
    settings: dict[str, Any] = config.model_dump(mode="json")
    for section, keys in _FREE.items():
        if keys is None:
            del settings[section]
            continue
        for name in keys:
            settings[section].pop(name, None)
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def expand(
    source: str,
    scale: ScaleName,
    folder: Path,
    seeds: int | None = None,
    overrides: Sequence[str] = (),
) -> Study:
    """Reads a study and spells out its runs.

    Args:
        source: its name, or a YAML file.
        scale: its size.
        folder: where its runs are.
        seeds: how many, if not as many as it says.
        overrides: `section.key=value`, over everything.

    Raises:
        InputError: for a bad definition, or a run that cannot be configured, naming it.
    """
    definition = read(source)
    size = definition.scale(scale)
    count = size.seeds if seeds is None else seeds
    layers = [*read_source(definition.base), definition.settings, size.settings]
    above = read_overrides(overrides)
    if "seed" in above:
        raise InputError("a study sets the seeds itself: give --seeds for their number")
    variants = [axis.at(scale) for axis in definition.axes]
    cells = (
        zip(*variants, strict=True) if definition.combine == "zip" else itertools.product(*variants)
    )
    every = list(cells)
    runs: list[StudyRun] = []
    for seed in range(count):
        top = [*size.by_seed[seed : seed + 1], above, {"seed": seed}]
        for cell in every:
            config = _configure(cell, scale, layers, top)
            outputs = Outputs(folder / "runs" / f"{key(config)}.h5")
            runs.append(StudyRun(len(runs), tuple(cell), config, outputs))
    return Study(called(source), definition, scale, count, folder, tuple(runs))


def _configure(
    cell: Sequence[Variant],
    scale: ScaleName,
    below: Sequence[Mapping[str, Any]],
    above: Sequence[Mapping[str, Any]],
) -> Config:
    over: list[Mapping[str, Any]] = []
    for variant in cell:
        over += [variant.settings, variant.at.get(scale, {})]
    methods = {name: method.Settings for name, method in METHODS.items()}
    try:
        return parse([*below, *over, *above], methods)
    except InputError as error:
        raise InputError(f"{', '.join(variant.label for variant in cell)}: {error}") from error


# ------------------------------------------------------------------------------------------- done


def rounds_recorded(outputs: Outputs) -> int:
    """Rounds in a run's record; 0 if there is none, or it is not readable."""
    return _read(outputs.record, lambda file: len(file["time/seconds"]))


def rounds_kept(outputs: Outputs) -> int:
    """Rounds done in the newest checkpoint; 0 if there is none."""
    return _read(outputs.checkpoint, lambda file: int(file.attrs["round"]))


def is_done(run: StudyRun, weights: bool) -> bool:
    """Whether a run has all its rounds; `weights`: and its last checkpoint, which a report reads."""
    rounds = run.config.rounds
    if rounds_recorded(run.outputs) < rounds:
        return False
    return not weights or rounds_kept(run.outputs) >= rounds


def _read(path: Path, what: Any) -> int:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return int(what(file))
    except Exception:  # over a damaged file h5py raises almost anything
        return 0
