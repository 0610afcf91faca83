"""Exceptions that carry a message for the user and the exit code of the program.

Two kinds matter to whoever starts a job. `InputError` (exit code 2) says that the input was wrong:
correct it and submit the job again. `SimulationError` (exit code 1) says that the computation failed.
Every message names the rule, the value that broke it, and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MpiNtkdflError(Exception):
    """Base class of the package's own exceptions; the user sees them without a traceback."""

    exit_code = 1


class InputError(MpiNtkdflError):
    """The configuration, a file or the command line asks for something impossible."""

    exit_code = 2
    agreed = False
    """Whether every rank knows of this error and stops by itself. The code that made the ranks agree
    sets it."""


class Elsewhere(InputError):
    """Bad input that another rank reports; this rank only has to stop."""

    agreed = True


class SimulationError(MpiNtkdflError):
    """The computation cannot go on, for example because a client's weights became non-finite."""


class Diverged(SimulationError):
    """A client's weights or loss became non-finite in a round."""


@contextmanager
def locating(**where: object) -> Iterator[None]:
    """Adds notes `key value`, such as the client and the round, to any exception raised in the block.

    The program's outermost handler prints the notes after the message. So a failure deep in the
    mathematics is reported with the client and the round, although that code knows neither.
    """
    try:
        yield
    except Exception as error:
        for key, value in where.items():
            error.add_note(f"{key} {value}")
        raise
