"""From a study to its runs.

A run is identified by its settings and the content of its files, so studies can share runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from pydantic import BaseModel

from mpi_ntkdfl.config import Config, effect, parse
from mpi_ntkdfl.metrics import ACCURACY, ROUNDS, SECONDS
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime import identity as package
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage import identity
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.resume import differences
from mpi_ntkdfl.storage.schema import FILES, end_of_run, starts_of
from mpi_ntkdfl.studies.definition import Definition, ScaleName, Variant, called, read

_log = logging.getLogger(__name__)

_CONTENT_DIGITS = 8
"""Number of hexadecimal digits for the content of files in a run's name."""

_KINDS = ("name", "kind")
"""Settings that choose the kind of a section; defaults differ between kinds."""

_DIGITS = 16
"""Number of hexadecimal digits of a key: 64 bits, so that no two of a million runs have the same."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        index: its number among the study's runs; all runs of one seed come before those of the next.
        cell: one variant of each axis, in the order of the axes.
        config: the complete configuration.
        outputs: its files, which may not exist yet.
    """

    index: int
    cell: tuple[Variant, ...]
    config: Config
    outputs: Outputs

    @property
    def key(self) -> str:
        """Hash of its configuration and of the content of its files: the name of its outputs."""
        return self.outputs.record.stem

    @property
    def label(self) -> str:
        """The text that describes it in tables and messages."""
        return f"{', '.join(v.label for v in self.cell)}, seed {self.config.seed}"


@dataclass(frozen=True)
class Study:
    """A study at one scale with all its runs.

    Attributes:
        name: the name of its files.
        definition: the definition of the study.
        scale: its scale.
        seeds: number of seeds.
        folder: the folder of its files.
        runs: all its runs; a run of two cells appears twice, with one key.
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
    """Hash of the settings that differ from the defaults and affect more than the last bits of a result.

    So a run keeps its name if a later version has more settings. If a later version changes a default,
    the name also stays; but `is_done` and a resumed run compare all settings with the record. Paths
    count, except that of a data set, which differs between machines. The content of files does not
    count; see `run_name`.
    """
    settings: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if not isinstance(value, BaseModel):
            settings[name] = value
        elif kept := _chosen(value, f"{name}.", config):
            settings[name] = kept
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _chosen(section: BaseModel, above: str, config: Config) -> dict[str, Any]:
    """The kind of a section, and its settings that count and are not defaults, as JSON values."""
    chosen: dict[str, Any] = {}
    whole = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        default = field.get_default(call_default_factory=True)
        if not counts(above + name, config) or (name not in _KINDS and value == default):
            continue
        chosen[name] = (
            _chosen(value, f"{above}{name}.", config)
            if isinstance(value, BaseModel)
            else whole[name]
        )
    return chosen


def counts(setting: str, config: Config | None = None) -> bool:
    """Whether two runs that differ in this setting have different keys."""
    what = effect(setting, config)
    return what not in ("rounding", "nothing") and not (
        what == "place" and setting.startswith("dataset.")
    )


def run_name(config: Config, folder: Path) -> str:
    """The name of a run's files: `key`, and for files of the user's own a hash of their content.

    If the content of a path changes, it is another run, and the files of the former run stay. If a file
    is missing, for example on a machine that only draws, and the folder has one run of this key, this
    run is taken.

    Args:
        config: the configuration of the run.
        folder: the folder of the runs.
    """
    settings, contents = key(config), identity.before_reading(config)
    if not contents:
        return settings
    if all(contents.values()):
        text = json.dumps(contents, sort_keys=True)
        return f"{settings}-{hashlib.sha256(text.encode()).hexdigest()[:_CONTENT_DIGITS]}"
    named = re.compile(rf"{settings}(-[0-9a-f]{{{_CONTENT_DIGITS}}})?\.h5")
    runs = [
        path.stem for path in sorted(folder.glob(f"{settings}*.h5")) if named.fullmatch(path.name)
    ]
    if len(runs) > 1:
        missing = ", ".join(FILES[name] for name, digest in contents.items() if not digest)
        _log.warning(
            "the file of %s is missing, and %d runs of this configuration had different ones: %s",
            *(missing, len(runs), ", ".join(runs)),
        )
    return runs[0] if len(runs) == 1 else settings


def expand(
    source: str,
    scale: ScaleName,
    folder: Path,
    seeds: int | None = None,
    overrides: Sequence[str] = (),
) -> Study:
    """Reads a study and makes the configurations of all its runs.

    Args:
        source: its name, or a YAML file.
        scale: its scale.
        folder: the folder of its runs.
        seeds: number of seeds; None for that of the definition.
        overrides: `section.key=value`, which replace all other settings.

    Raises:
        InputError: for a bad definition, or a run with wrong settings; the message names the run.
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
            outputs = Outputs(folder / "runs" / f"{run_name(config, folder / 'runs')}.h5")
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
    try:
        return parse([*below, *over, *above])
    except InputError as error:
        raise InputError(f"{', '.join(variant.label for variant in cell)}: {error}") from error


# ------------------------------------------------------------------------------------------- done


def rounds_recorded(outputs: Outputs) -> int:
    """Number of rounds in a run's record; 0 if it is missing or not readable."""
    return _read(outputs.record, lambda file: len(file[SECONDS.dataset]))


def rounds_kept(outputs: Outputs) -> int:
    """Number of rounds done in the newest checkpoint; 0 if there is none."""
    return _read(outputs.checkpoint, lambda file: int(file.attrs["round"]))


def is_done(run: StudyRun, weights: bool) -> bool:
    """Whether a run is finished and, if `weights` is set, has its last checkpoint for a report."""
    config = run.config

    def last(file: h5py.File) -> int:
        """The number of rounds of a finished run, or 0."""
        former = parse([read_yaml(file.attrs["config"], "the recorded configuration")])
        changes = differences(former.model_dump(mode="json"), config.model_dump(mode="json"))
        if any(counts(setting, config) for setting in changes):
            return 0  # another run of this name, by a version with other defaults
        rows = file[ROUNDS.dataset][:], file[ACCURACY.dataset][:]
        end = end_of_run(config.rounds, config.stop_at, *rows)
        return end if len(file[SECONDS.dataset]) >= end else 0

    rounds = _read(run.outputs.record, last)
    return rounds > 0 and (not weights or rounds_kept(run.outputs) >= rounds)


def has_other_code(outputs: Outputs) -> bool:
    """Whether a start of a run used other code than this process has.

    Code is the sources of the package and the plugins. A plugin that only this process loaded does not
    count, because the run did not use it.

    Returns:
        False if there is no readable record, or it is of an earlier version that recorded no sources.
    """
    own, own_plugins = package.own()["sources"], set(plugins.loaded())

    def other(file: h5py.File) -> bool:
        return any(
            str(start.get("sources", own)) != own
            or not set(plugins.from_json(str(start.get("plugins", "[]")))) <= own_plugins
            for start in starts_of(file.attrs)
        )

    return bool(_read(outputs.record, other))


def _read(path: Path, what: Callable[[h5py.File], int]) -> int:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return int(what(file))
    except Exception:  # over a damaged file h5py raises almost anything
        return 0
