"""Exceptions that carry a message for the user and the exit code of the program.

Two kinds matter to whoever starts a job: the input was wrong (`InputError`, exit code 2: mend it and
submit again) and the computation went wrong (`SimulationError`, exit code 1). Every message says the
rule, what came, and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MpiNtkdflError(Exception):
    """Root of the package's own exceptions; shown to the user without a traceback."""

    exit_code = 1


class InputError(MpiNtkdflError):
    """The configuration, a file or the command line asks for something that cannot be."""

    exit_code = 2
    agreed = False
    """Whether every rank knows of it and stops by itself; set by whoever made them agree."""


class Elsewhere(InputError):
    """Bad input that another rank reports; this one only has to stop."""

    agreed = True


class SimulationError(MpiNtkdflError):
    """The computation cannot go on, for example because a client's weights became non-finite."""


class Diverged(SimulationError):
    """A client's weights or loss became non-finite in a round."""


@contextmanager
def locating(**where: object) -> Iterator[None]:
    """Adds `key value` notes to any exception that passes, such as the client and the round.

    The program's outermost handler prints them after the message, so that a failure deep in the
    mathematics, which knows neither, is still reported with both.
    """
    try:
        yield
    except Exception as error:
        for key, value in where.items():
            error.add_note(f"{key} {value}")
        raise
