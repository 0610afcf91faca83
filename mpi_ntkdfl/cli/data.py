"""The commands `data list`, `data show`, `data fetch` and `data path`."""

from __future__ import annotations

import click

from mpi_ntkdfl import config
from mpi_ntkdfl.cli.groups import Group, examples
from mpi_ntkdfl.cli.options import PLUGIN


@click.group(cls=Group, epilog=examples("data list"))
def data() -> None:
    """List, describe, download or locate data sets."""


@data.command("list", epilog=examples("data list"))
def data_list() -> None:
    """List the data sets, their licences, and where they are."""
    from mpi_ntkdfl.data import sources

    for e in sources.catalogue():
        size = "size depends on your files"
        if e.size is not None:
            size = (
                f"{e.size.train} + {e.size.test} samples, {e.size.features} features, "
                f"{e.size.classes} classes"
            )
        place = f"{'found: ' if e.found else ''}{e.where}"
        bundled = "bundled, " if e.bundled else ""
        click.echo(f"{e.name:16}{size}\n{'':16}licence: {e.licence}\n{'':16}{bundled}{place}")


@data.command("show", epilog=examples("data show heart-disease"))
@click.argument("name")
@click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting of the data set, such as path=MINE.npz. Repeatable.",
)
@PLUGIN
def data_show(name: str, assignments: tuple[str, ...], plugin_files: tuple[str, ...]) -> None:
    """Print how many samples of each class and site a data set has."""
    from mpi_ntkdfl.data import counts, sources
    from mpi_ntkdfl.presets import read_overrides
    from mpi_ntkdfl.runtime import plugins

    plugins.load(plugin_files)
    settings = config.dataset_settings(name, **read_overrides(assignments))
    click.echo(counts.text(sources.load(settings)))


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
        inside = sources.DATASETS.find(name).inside
        click.echo(f"{name} comes inside {inside} and has no file of its own")
    for path in files.values():
        click.echo(path)
