"""The command line: parses, sets up logging, calls, and turns failures into messages and exit codes.

Exit codes: 0 done, 1 the computation failed, 2 bad input, 75 stopped early with a checkpoint. The module
of a command is imported when the command is called, so that `--help` and `show` answer at once and only
`run` and `doctor` start MPI.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from pathlib import Path
from typing import NoReturn

import click

from mpi_ntkdfl import __version__
from mpi_ntkdfl.cli.failing import complain, output_may_end
from mpi_ntkdfl.cli.groups import PROGRAM, Group, examples, program_name
from mpi_ntkdfl.comm.launcher import launched_rank
from mpi_ntkdfl.runtime.errors import Elsewhere, InputError, MpiNtkdflError

COMMANDS = {
    "run": ("run", "Run a preset or a YAML file; start it under mpirun or srun for several ranks."),
    "check": ("plan", "Validate a configuration with its data and print the plan; starts no MPI."),
    "submit": (
        "submit",
        "Make a Slurm batch script of a run, checked beforehand, and print or submit it.",
    ),
    "presets": ("plan", "List the presets, or print one as YAML."),
    "show": ("records", "Print what ran, the final numbers, the traffic, and the time by phase."),
    "compare": (
        "records",
        "Print the rounds, bytes and seconds that runs needed to an accuracy, and where they ended.",
    ),
    "plot": (
        "records",
        "Draw runs: accuracy of the average against rounds, protocol bytes and seconds.",
    ),
    "export": ("records", "Write weights from a run's checkpoint as a torch state_dict."),
    "audit": (
        "audit",
        "Reconstruct samples from the messages of a run, as a curious neighbour can, and compare.",
    ),
    "kernel": (
        "records",
        "Print the spectrum of a client's neural tangent kernel, and how it changed.",
    ),
    "data": ("data", "List, describe, download or locate data sets."),
    "doctor": (
        "run",
        "Print what MPI, launcher, nodes, GPUs, threads, HDF5 and data look like; it works under mpirun.",
    ),
    "scaling": (
        "scaling",
        "Run one configuration on several numbers of ranks, report, and predict.",
    ),
    "study": ("study", "Whole experiments: a grid of runs, and its tables and figures."),
}
"""Every command: its module in this folder, and the first paragraph of its help."""


def main() -> NoReturn:
    """Parses the command line and calls the command; never returns."""
    for stream in (sys.stdout, sys.stderr):
        # Texts of a damaged file may have no encoding.
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # a stream that cannot be flushed
                stream.reconfigure(errors="backslashreplace")
    try:
        _require_folder()
        code = cli.main(standalone_mode=False, prog_name=program_name())
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


class _Commands(Group):
    """The commands of the table `COMMANDS`."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Imports a command; None if there is no such one."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"mpi_ntkdfl.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def first_sentences(self, context: click.Context) -> list[tuple[str, str]]:
        """Every command with the first paragraph of its help, without importing it."""
        return [(name, COMMANDS[name][1]) for name in self.list_commands(context)]

    def invoke(self, context: click.Context) -> object:
        """Calls a command; click would end with code 1 when a reader of the output has ended."""
        with output_may_end():
            return super().invoke(context)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from mpi_ntkdfl.runtime.identity import commit

        click.echo(f"mpi_ntkdfl {__version__}, commit {commit()}")
        context.exit()


_HELP = """Decentralized federated learning with neural tangent kernels, on MPI ranks.

Without a command the program runs quickstart.
"""


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_HELP,
    epilog=examples(
        f"mpirun -n 4 {PROGRAM}",
        f"mpirun -n 32 {PROGRAM} run paper-fashion-mnist -o paper.h5",
        "show paper.h5",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and the commit, and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Calls the command that the user named, or runs quickstart."""
    if context.invoked_subcommand is None:
        run = cli.get_command(context, "run")
        assert run is not None
        context.invoke(run, source="quickstart")
