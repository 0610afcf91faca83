"""The commands `data list`, `data fetch` and `data path`."""

from __future__ import annotations

import click

from mpi_ntkdfl import config
from mpi_ntkdfl.cli.groups import Group, examples


@click.group(cls=Group, epilog=examples("data list"))
def data() -> None:
    """List, download or locate data sets."""


@data.command("list", epilog=examples("data list"))
def data_list() -> None:
    """List the data sets, their licences, and where they are."""
    from mpi_ntkdfl.data import sources

    for e in sources.catalogue():
        size = f"{e.train_samples} + {e.test_samples} samples, {e.features} features, {e.classes} classes"
        place = f"{'found: ' if e.found else ''}{e.where}"
        click.echo(f"{e.name:16}{size}\n{'':16}licence: {e.licence}\n{'':16}{place}")


@data.command("fetch", epilog=examples("data fetch fashion-mnist"))
@click.argument("name")
def data_fetch(name: str) -> None:
    """Download a data set into the cache folder, checked by hash."""
    from mpi_ntkdfl.data import sources

    click.echo(sources.fetch(name))


@data.command("path", epilog=examples("data path fashion-mnist"))
@click.argument("name")
def data_path(name: str) -> None:
    """Print where the files of a data set are."""
    from mpi_ntkdfl.data import sources

    files = sources.locate(config.dataset_settings(name))
    if not files:
        click.echo(f"{name} comes inside scikit-learn and has no file of its own")
    for path in files.values():
        click.echo(path)
