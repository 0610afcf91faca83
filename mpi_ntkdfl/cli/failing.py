"""How a failure becomes a message and an exit code, on all ranks together."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mpi_ntkdfl.runtime.errors import InputError, MpiNtkdflError

if TYPE_CHECKING:
    from mpi_ntkdfl.comm.mpi import MpiWorld


@contextlib.contextmanager
def failing_together(world: MpiWorld) -> Iterator[None]:
    """Ends all ranks when one fails, with its message. Bad input on which all agree passes to `main`."""
    try:
        yield
    except InputError as error:
        if not (error.agreed or world.size == 1):
            complain(error, world.rank)
            world.abort(error.exit_code)
        raise
    except Exception as error:
        complain(error, world.rank)
        if world.size > 1:
            world.abort(1)
        sys.exit(1)


@contextlib.contextmanager
def output_may_end() -> Iterator[None]:
    """Allows that a reader of standard output ends, as `head` does; further output is dropped."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        silence()
        if error.errno != errno.EPIPE:
            raise


def silence() -> None:
    """Drops what is still to be written to standard output, also when the program ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def complain(error: BaseException, rank: int | None = None) -> None:
    """Prints one message, with a traceback only for errors of the program itself."""
    if not isinstance(error, MpiNtkdflError):
        import traceback

        traceback.print_exception(error)
    where = [f"rank {rank}"] if rank is not None else []
    where += dict.fromkeys(getattr(error, "__notes__", []))  # both method and loop name the round
    message = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"error: {message}" + (f" ({', '.join(where)})" if where else ""), err=True)
    sys.stderr.flush()
