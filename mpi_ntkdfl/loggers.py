"""Where a run's numbers go while it runs, beside its record: a stream of lines, or a tracking program.

Each logger is a callback: `nd.run(config, "a.h5", callbacks=[JsonLinesLog("a.jsonl")])`. The command line
makes them of words: `run --log a.csv --log tensorboard:logs`. Every evaluated round is logged once, with
the numbers of `simulation.Progress.numbers`. A callback of your own is any function of a `Progress`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_ntkdfl.analysis.files import replacing
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.registry import did_you_mean

if TYPE_CHECKING:
    from mpi_ntkdfl.simulation import Progress

_log = logging.getLogger(__name__)

Callback = Callable[["Progress"], None]


class _Lines(ABC):
    """A text file that grows by one line per evaluated round, so that any program can follow it.

    A run that begins replaces the file of an earlier run. A resumed run drops the lines of rounds that
    it does again.
    """

    def __init__(self, path: str | Path) -> None:
        """Names the file.

        Raises:
            InputError: if the file exists and is not one that this class wrote.
        """
        self.path = user_path(str(path), "the log")
        self._begun = False
        try:
            lines = self._read()
            if lines and self._round(lines, len(lines) - 1) is None:
                raise ValueError
        except (OSError, ValueError) as error:
            raise InputError(
                f"the log {self.path} exists and is no log of a run; choose another name"
            ) from error

    def __call__(self, progress: Progress) -> None:
        """Appends a line, if the round was evaluated.

        Raises:
            InputError: if the file cannot be written.
        """
        numbers = progress.numbers()
        if not numbers:
            return
        if not self._begun:
            self._begin(progress.first, numbers)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(numbers))
        except OSError as error:
            raise InputError(
                f"cannot write the log {self.path}: {error.strerror or error}"
            ) from error

    def _begin(self, first: int, numbers: Mapping[str, float]) -> None:
        lines = self._read() if first else []
        rounds = [self._round(lines, place) for place in range(len(lines))]
        kept = [
            line
            for line, done in zip(lines, rounds, strict=True)
            if done is not None and done <= first
        ]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(kept) or self._head(numbers), encoding="utf-8")
        self._begun = True

    def _read(self) -> list[str]:
        """The whole lines of the file; none if there is no file."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]

    @abstractmethod
    def _round(self, lines: list[str], place: int) -> float | None:
        """The round of a line, 0 for a head; None if it is no line of a log."""

    @abstractmethod
    def _head(self, numbers: Mapping[str, float]) -> str:
        """What stands before the first line."""

    @abstractmethod
    def _line(self, numbers: Mapping[str, float]) -> str:
        """One round."""


class CsvLog(_Lines):
    """A CSV file: a head with the names of the numbers, then one line per evaluated round."""

    def _round(self, lines: list[str], place: int) -> float | None:
        if not lines[0].startswith("rounds,"):
            return None
        return float(lines[place].partition(",")[0]) if place else 0.0

    def _head(self, numbers: Mapping[str, float]) -> str:
        return _csv(list(numbers))

    def _line(self, numbers: Mapping[str, float]) -> str:
        with self.path.open(encoding="utf-8") as file:
            names = next(csv.reader(file))  # of an earlier start, perhaps with other metrics
        return _csv([f"{numbers[name]:.15g}" if name in numbers else "" for name in names])


class JsonLinesLog(_Lines):
    """One JSON object per line and evaluated round; NaN and infinities are null."""

    def _round(self, lines: list[str], place: int) -> float | None:
        told = json.loads(lines[place])
        return told.get("rounds") if isinstance(told, dict) else None

    def _head(self, numbers: Mapping[str, float]) -> str:
        return ""

    def _line(self, numbers: Mapping[str, float]) -> str:
        finite = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        return json.dumps(finite) + "\n"


def _csv(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class _Tracker(ABC):
    """A tracking program, which gets the numbers of every evaluated round.

    If its package is not installed, one warning says so and nothing is logged there.
    """

    package: str
    module: str

    def __init__(self, where: str) -> None:
        """Names the folder, project or experiment; it is opened at the first round."""
        self.where = where
        self._send: Callable[[dict[str, float], int], object] | None = None
        self._module: Any = None
        try:
            self._module = import_module(self.module)
        except ImportError:
            _log.warning(
                '%s is not installed, so this run is not logged there: pip install "mpi_ntkdfl[%s]"',
                *(self.package, self.package),
            )

    def __call__(self, progress: Progress) -> None:
        """Sends the numbers, if the round was evaluated and the package is installed."""
        numbers = progress.numbers()
        if self._module is None or not numbers:
            return
        if self._send is None:
            self._send = self._open(progress)
        self._send({k: v for k, v in numbers.items() if k != "rounds"}, progress.done)

    @abstractmethod
    def _open(self, progress: Progress) -> Callable[[dict[str, float], int], object]:
        """Begins a log; returns a function of the numbers and the round."""


class TensorBoardLog(_Tracker):
    """Writes scalars for TensorBoard into the folder `where`."""

    package, module = "tensorboard", "torch.utils.tensorboard"

    def _open(self, progress: Progress) -> Callable[[dict[str, float], int], object]:
        again = progress.first + 1 if progress.first else None
        writer = self._module.SummaryWriter(self.where, purge_step=again)

        def send(numbers: dict[str, float], done: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, done)
            writer.flush()

        return send


class WandbLog(_Tracker):
    """Sends numbers to the project `where` of Weights & Biases."""

    package = module = "wandb"

    def _open(self, progress: Progress) -> Callable[[dict[str, float], int], object]:
        run = self._module.init(project=self.where)
        return lambda numbers, done: run.log(numbers, step=done)


class MlflowLog(_Tracker):
    """Sends numbers to the experiment `where` of MLflow."""

    package = module = "mlflow"

    def _open(self, progress: Progress) -> Callable[[dict[str, float], int], object]:
        self._module.set_experiment(self.where)
        self._module.start_run()
        return lambda numbers, done: self._module.log_metrics(numbers, step=done)


_SUFFIXES: dict[str, type[_Lines]] = {".csv": CsvLog, ".jsonl": JsonLinesLog}
_TRACKERS: dict[str, type[_Tracker]] = {
    each.package: each for each in (TensorBoardLog, WandbLog, MlflowLog)
}


def logger(text: str) -> Callback:
    """The logger that a word of the command line names.

    Args:
        text: a path that ends in .csv or .jsonl, or `tensorboard:FOLDER`, `wandb:PROJECT`,
            `mlflow:EXPERIMENT`.

    Raises:
        InputError: for another text.
    """
    kind, colon, where = text.partition(":")
    if kind in _TRACKERS and where:
        return _TRACKERS[kind](where)
    suffix = Path(text).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix](text)
    raise InputError(
        "--log takes FILE.csv, FILE.jsonl, tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT, got "
        f"{text!r}{did_you_mean(kind, _TRACKERS) if colon else ''}"
    )


def all_of(callbacks: Iterable[Callback]) -> Callback:
    """One callback that calls several, in order."""
    every = list(callbacks)

    def call(progress: Progress) -> None:
        for callback in every:
            callback(progress)

    return call


def forgiving(callback: Callback) -> Callback:
    """A callback that stops with a warning where `callback` fails, so that the run goes on."""
    failed = False

    def call(progress: Progress) -> None:
        nonlocal failed
        if failed:
            return
        try:
            callback(progress)
        except Exception as error:  # whatever a tracking program raises
            failed = True
            reason = " ".join(str(error).split())
            _log.warning("this run is not logged any more: %s: %s", type(error).__name__, reason)

    return call
