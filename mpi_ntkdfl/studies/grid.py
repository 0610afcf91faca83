"""From a study to its runs.

A run is known by its settings and the content of its files, whichever study asks for it.
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
from mpi_ntkdfl.storage.schema import end_of_run, starts_of
from mpi_ntkdfl.studies.definition import Definition, ScaleName, Variant, called, read

_log = logging.getLogger(__name__)

_CONTENT_DIGITS = 8
"""Hexadecimal digits for the content of files, among runs of the same settings."""

_KINDS = ("name", "kind")
"""Settings that tell the kind of a section; their defaults differ between kinds."""

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
        """Hash of its configuration and of the content of its files: the name of what it writes."""
        return self.outputs.record.stem

    @property
    def label(self) -> str:
        """For people."""
        return f"{', '.join(v.label for v in self.cell)}, seed {self.config.seed}"


@dataclass(frozen=True)
class Study:
    """A study of some size, spelt out.

    Attributes:
        name: the name of its files.
        definition: the definition of the study.
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
    """Hash of the settings that are not defaults and that decide a run's result, beyond the last bits.

    So a run keeps its name when a later version has more settings. Should a later version change a
    default, the name stays as well; `is_done` and a resumed run compare all settings with the record.
    Paths count, except that of a data set, which differs between machines. The content of files is not
    in it; see `run_name`.
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
    """The kind of a section, and its settings that count and are not defaults, as JSON has them."""
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
    """Whether two runs of a study that differ in this setting are two runs."""
    what = effect(setting, config)
    return what not in ("rounding", "nothing") and not (
        what == "place" and setting.startswith("dataset.")
    )


def run_name(config: Config, folder: Path) -> str:
    """The name of a run's files: `key`, and for files of the user's own a hash of their content.

    With another content under the same path it is another run, and the former one stays. Where a file is
    missing, as on a machine that only draws, the one run of this key in the folder is taken.

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
        missing = ", ".join(identity.FILES[name] for name, digest in contents.items() if not digest)
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
    """Rounds in a run's record; 0 if there is none, or it is not readable."""
    return _read(outputs.record, lambda file: len(file[SECONDS.dataset]))


def rounds_kept(outputs: Outputs) -> int:
    """Rounds done in the newest checkpoint; 0 if there is none."""
    return _read(outputs.checkpoint, lambda file: int(file.attrs["round"]))


def is_done(run: StudyRun, weights: bool) -> bool:
    """Whether a run is finished; `weights`: and has its last checkpoint, which a report reads."""
    config = run.config

    def last(file: h5py.File) -> int:
        former = parse([read_yaml(file.attrs["config"], "the recorded configuration")])
        changes = differences(former.model_dump(mode="json"), config.model_dump(mode="json"))
        if any(counts(setting, config) for setting in changes):
            return config.rounds + 1  # another run of this name, by a version with other defaults
        rows = file[ROUNDS.dataset][:], file[ACCURACY.dataset][:]
        return end_of_run(config.rounds, config.stop_at, *rows)

    rounds = _read(run.outputs.record, last)
    if not rounds or rounds_recorded(run.outputs) < rounds:
        return False
    return not weights or rounds_kept(run.outputs) >= rounds


def has_other_code(outputs: Outputs) -> bool:
    """Whether a start of a run used other code than this process has.

    Code is the sources of the package and the plugins. A plugin that only this process loaded does not
    count: the run did without it.

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
