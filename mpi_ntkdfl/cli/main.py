"""The command line: parses, sets up logging, calls, and turns failures into messages and exit codes.

Exit codes: 0 done, 1 the computation failed, 2 bad input, 75 stopped early with a checkpoint. Heavy
imports happen inside the commands that need them, so that `presets` and `show` answer at once and only
`run` and `doctor` start MPI.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from mpi_ntkdfl import __version__
from mpi_ntkdfl.cli.data import data
from mpi_ntkdfl.cli.failing import complain, output_may_end
from mpi_ntkdfl.cli.plan import check, presets
from mpi_ntkdfl.cli.records import compare, export, plot, show
from mpi_ntkdfl.cli.run import doctor, run
from mpi_ntkdfl.cli.scaling import scaling
from mpi_ntkdfl.cli.study import study
from mpi_ntkdfl.cli.submit import submit
from mpi_ntkdfl.comm.launcher import launched_rank
from mpi_ntkdfl.comm.mpi import Elsewhere
from mpi_ntkdfl.runtime.errors import InputError, MpiNtkdflError


def main() -> NoReturn:
    """Entry point of `python -m mpi_ntkdfl`; never returns."""
    try:
        _require_folder()
        code = cli.main(standalone_mode=False, prog_name="python -m mpi_ntkdfl")
    except click.ClickException as error:
        # Every rank parses the same words; one message is enough.
        if launched_rank() == 0:
            error.show()
        code = error.exit_code
    except InputError as error:
        # Before MPI starts, every rank has the same error; afterwards one has it, and others `Elsewhere`.
        if not isinstance(error, Elsewhere) and (error.agreed or launched_rank() == 0):
            complain(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except OSError as error:
        if error.filename is not None:
            raise
        complain(MpiNtkdflError(f"cannot write the output: {error.strerror or error}"))
        code = 1
    sys.exit(code)


def _require_folder() -> None:
    """Checks that the working folder exists; without it, libraries end the process without a message.

    Raises:
        InputError: if it does not.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise InputError("the working folder is gone; change to another one") from error


class _Commands(click.Group):
    def invoke(self, context: click.Context) -> object:
        """Calls a command; click would end with code 1 when a reader of the output has ended."""
        with output_may_end():
            return super().invoke(context)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="mpi_ntkdfl")
@click.pass_context
def cli(context: click.Context) -> None:
    r"""Decentralized federated learning with neural tangent kernels, on MPI ranks.

    Without a command: run quickstart.

    \b
        mpirun -n 4 python -m mpi_ntkdfl
        mpirun -n 32 python -m mpi_ntkdfl run paper-fashion-mnist -o paper.h5
    """
    if context.invoked_subcommand is None:
        context.invoke(run, source="quickstart")


for command in (
    run,
    check,
    submit,
    presets,
    show,
    compare,
    plot,
    export,
    data,
    doctor,
    scaling,
    study,
):
    cli.add_command(command)
