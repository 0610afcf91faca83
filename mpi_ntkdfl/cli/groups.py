"""What the commands' help and their messages have in common: examples, whole first lines, suggestions."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mpi_ntkdfl.runtime.registry import did_you_mean

PROGRAM = "python -m mpi_ntkdfl"
"""How the program is called in help texts."""

_CONSOLE = "mpi-ntkdfl"
"""The console command of an installed package."""


def program_name() -> str:
    """How the user called the program: by the console command or through Python."""
    return _CONSOLE if Path(sys.argv[0]).stem == _CONSOLE else PROGRAM


def examples(*lines: str) -> str:
    r"""The epilog of a command's help: a list of command lines.

    Args:
        *lines: words after the name of the program. A line may begin with `mpirun`, and then names the
            program itself.
    """
    whole = (line if PROGRAM in line else f"{PROGRAM} {line}" for line in lines)
    # A paragraph that begins with \b keeps its lines.
    return "\n".join(["\b", "Examples:", *(f"    {line}" for line in whole)])


class Group(click.Group):
    """A group of commands that suggests the closest name and lists whole first sentences."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that the first word names.

        Raises:
            UsageError: if there is none; the message names the closest one and lists all.
        """
        if args and not args[0].startswith("-") and self.get_command(context, args[0]) is None:
            names = self.list_commands(context)
            hint = did_you_mean(args[0], names)
            context.fail(f"No such command {args[0]!r}{hint or ';'} There are: {', '.join(names)}.")
        return super().resolve_command(context, args)

    def first_sentences(self, context: click.Context) -> list[tuple[str, str]]:
        """Every command with the first paragraph of its help."""
        return [
            (name, " ".join(str(command.help).split("\n\n")[0].split()))
            for name in self.list_commands(context)
            if (command := self.get_command(context, name)) is not None
        ]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands; click would cut their help after 45 letters."""
        with formatter.section("Commands"):
            formatter.write_dl(self.first_sentences(context))
