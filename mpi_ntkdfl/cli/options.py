"""Arguments and helpers that several commands share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mpi_ntkdfl import config

SOURCE = click.argument("source", metavar="PRESET_OR_YAML", default="quickstart")
SET = click.option(
    "--set",
    "overrides",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    help="Override one setting; the value is read as YAML. Repeatable.",
)
PLUGIN = click.option(
    "--plugin",
    "plugin_files",
    metavar="FILE.py",
    multiple=True,
    help="Run a Python file of yours that registers methods, networks, data sets, ... Repeatable.",
)
MEASURE = click.option(
    "--measure/--no-measure",
    default=True,
    help="Predict seconds for this machine's speed, or for a nominal one.",
)


class Range(click.FloatRange):
    """Numbers within bounds; NaN is never within bounds."""

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Reads a number."""
        number = float(super().convert(value, parameter, context))
        if math.isnan(number):
            self.fail(f"{value} is no number.", parameter, context)
        return number


ACCURACY_RANGE = Range(0, 1)

RECORD = click.argument("record", metavar="RUN.h5", type=click.Path(path_type=Path))
RECORDS = click.argument(
    "records", metavar="RUN.h5...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def read_config(source: str, overrides: tuple[str, ...]) -> config.Config:
    """Reads a preset or a YAML file with the values of `--set` over it.

    Raises:
        InputError: for bad input.
    """
    # Of the commands that share this module, those that read records need no settings.
    from mpi_ntkdfl import config, presets

    return config.parse([*presets.read_source(source), presets.read_overrides(overrides)])


def warn(lines: Iterable[str]) -> None:
    """Prints warnings to standard error, one line each."""
    for line in lines:
        click.echo(f"warning: {line}", err=True)
