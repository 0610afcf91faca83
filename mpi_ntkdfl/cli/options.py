"""Arguments and helpers that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from mpi_ntkdfl import config

SOURCE = click.argument("source", metavar="PRESET_OR_YAML", default="quickstart")
SET = click.option(
    "--set",
    "overrides",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    help="Override one setting; the value is read as YAML. Repeatable.",
)
RECORD = click.argument("record", metavar="RUN.h5", type=click.Path(path_type=Path))
RECORDS = click.argument(
    "records", metavar="RUN.h5...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def read_config(source: str, overrides: tuple[str, ...]) -> config.Config:
    """Reads a preset or a YAML file with the values of `--set` over it.

    Raises:
        InputError: for bad input.
    """
    from mpi_ntkdfl.algorithms import METHODS

    layers = [*config.read_source(source), config.read_overrides(overrides)]
    return config.parse(layers, {name: method.Settings for name, method in METHODS.items()})


def warn(lines: Iterable[str]) -> None:
    """Prints warnings to standard error, one line each."""
    for line in lines:
        click.echo(f"warning: {line}", err=True)
