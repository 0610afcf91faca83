"""Commands in forked children, for tests that kill, starve or damage a run.

A fork starts in milliseconds where a new process would import torch for seconds, and whatever happens
to it, a crash inside libhdf5 or a hang, stays contained.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

# Some modules are imported here only so that children do not have to import them.
from mpi_ntkdfl import assembly, simulation  # noqa: F401
from mpi_ntkdfl.analysis import live, tables  # noqa: F401
from mpi_ntkdfl.cli import main as cli
from mpi_ntkdfl.cli import plan, progress, records, study  # noqa: F401
from mpi_ntkdfl.cli import run as running
from mpi_ntkdfl.cli.options import read_config
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.runtime import identity
from mpi_ntkdfl.storage import journal, saving
from mpi_ntkdfl.storage.outputs import Outputs
from tests.test_mpi import INVARIANT

_PARENT = os.getpid()

TINY = {
    "clients": "4",
    "topology.degree": "3",
    "rounds": "3",
    "partition.samples": "5",
    "model.hidden": "[4]",
    "algorithm.taus": "[5, 10]",
    "algorithm.loss": "squared",
    "compute.device": "cpu",
}
"""A round of this takes milliseconds."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal, and what it wrote."""

    code: int
    out: str
    err: str


class Alone(SoloWorld):
    """One process without MPI, whose start would take longer than a tiny run."""

    def require_one_package(self) -> None:
        """There is only one."""


class Child:
    """A running child."""

    def __init__(
        self, task: Callable[[], object], limit: int = 250, whole_exit: bool = False
    ) -> None:
        """Forks; the child does `task` and exits.

        Args:
            task: what to do; its result becomes the exit code.
            limit: seconds after which the kernel ends the child by SIGALRM.
            whole_exit: leave as a program does, through what libraries do at exit.
        """
        assert os.getpid() == _PARENT, "children have no children"
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(limit)
                # `nohup` and the background of a script let these be ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                for number, file in enumerate(self._files, start=1):
                    os.dup2(file.fileno(), number)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                code = int(task() or 0)  # type: ignore[call-overload]
            except SystemExit as ended:
                code = int(ended.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                try:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    if whole_exit:
                        ctypes.CDLL(None).exit(code)
                finally:  # whatever happens, no child goes on with its parent's tests
                    os._exit(code)

    def says(self, words: str, limit: float = 30) -> bool:
        """Waits until it has written `words` to standard output."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if words in os.pread(self._files[0].fileno(), 10**6, 0).decode():
                return True
            time.sleep(0.02)
        return False

    def wait(self) -> Ended:
        """Waits for its end."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return Ended(code, *texts)


def command(
    *words: object, before: Callable[[], object] = lambda: None, **options: object
) -> Child:
    """Starts `mpi_ntkdfl WORDS` in a child, in one process without MPI.

    Args:
        words: of the command line.
        before: done in the child first.
        options: of `Child`.
    """

    def task() -> None:
        running.open_world = Alone  # type: ignore[assignment]
        sys.argv = ["mpi_ntkdfl", *map(str, words)]
        before()
        cli.main()

    return Child(task, **options)  # type: ignore[arg-type]


def run_words(path: Path, *flags: str, **changes: object) -> list[str]:
    """Words of a tiny run; `__` in the names of changes stands for the dot, None for the default."""
    settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    sets = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return ["run", "quickstart", "-o", str(path), "-q", *flags] + [
        word for each in sets for word in ("--set", each)
    ]


def run(
    path: Path, *flags: str, before: Callable[[], object] = lambda: None, **changes: object
) -> Ended:
    """A tiny run in a child, to its end."""
    return command(*run_words(path, *flags, **changes), before=before).wait()


def after_round(done: int, act: Callable[[], object]) -> Callable[[], None]:
    """For `before`: does `act` once `done` rounds are recorded, before their checkpoint."""

    def install() -> None:
        finish = journal.Journal.finish_round

        def finish_round(self: journal.Journal, finished: int, *rest: Any) -> np.ndarray:
            told = finish(self, finished, *rest)
            if finished == done:
                act()
            return told

        journal.Journal.finish_round = finish_round  # type: ignore[method-assign]

    return install


def before_agreeing(done: int, act: Callable[[], object]) -> Callable[[], None]:
    """For `before`: does `act` after `done` rounds, before the ranks agree on whether to stop."""

    def install() -> None:
        look = simulation.Simulation._look_around

        def look_around(self: simulation.Simulation, finished: int) -> tuple[str, bool]:
            if finished == done:
                act()
            return look(self, finished)

        simulation.Simulation._look_around = look_around  # type: ignore[method-assign]

    return install


def interrupted(path: Path, done: int, *flags: str, **changes: object) -> Ended:
    """A run that is told to stop after `done` rounds."""
    stop = before_agreeing(done, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return run(path, *flags, before=stop, **changes)


def in_parts() -> None:
    """For `before`: checkpoints consist of parts, although there is one rank."""
    saving.writing_groups = lambda ranks, nbytes, smallest: [range(ranks)]


def assert_refused(ended: Ended, *said: str) -> None:
    """Exit code 2 and one line, without a traceback."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert ended.err.count("\n") == 1, ended.err
    for words in said:
        assert words in ended.err, ended.err


def bits(path: Path) -> dict[str, object]:
    """All results of a run that must be the same however often it was killed."""
    found: dict[str, object] = {}
    with h5py.File(path, "r") as file:
        found |= {name: (file[name].shape, file[name][()].tobytes()) for name in INVARIANT}
    with h5py.File(Outputs(path).checkpoint, "r") as file:
        found["done"] = int(file.attrs["round"])
        arrays: dict[str, object] = {}
        file.visititems(
            lambda name, x: arrays.update({name: x[()].tobytes()} if hasattr(x, "shape") else {})
        )
    return found | arrays


def files(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files in a folder, without locks, in which a heartbeat counts."""
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".mpi_ntkdfl-lock"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


def restore(folder: Path, contents: dict[str, bytes]) -> None:
    """Makes a folder hold these files and no others; none shares its content with another's name."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def rounds_in(path: Path) -> int:
    """Rounds in a record, -1 without one."""
    if not path.exists():
        return -1
    with h5py.File(path, "r") as file:
        return len(file["topology/offsets"]) - 1


@contextmanager
def quick_starts() -> Iterator[None]:
    """Does once, in this process, what every child would have to do at its start."""
    torch.set_num_threads(1)
    loaded: dict[str, object] = {}
    load = assembly.sources.load

    def load_once(settings: object) -> object:
        key = repr(settings)
        if key not in loaded:
            loaded[key] = load(settings)  # type: ignore[arg-type]
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly.sources, "load", load_once)
        patch.setattr(identity, "commit", lambda: "unknown")
        # Tests kill processes and not machines, so no file has to be flushed to the disk.
        patch.setattr(os, "fsync", lambda descriptor: None)
        _warm_up()
        yield


def _warm_up() -> None:
    """Runs once, because libraries load parts of themselves at their first use, which takes a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        words = run_words(path)
        settings = read_config("quickstart", tuple(words[words.index("--set") + 1 :: 2]))
        simulation.run(settings, SoloWorld(), Outputs(path))
        tables.summary(tables.read(path))
