"""The figure of a partition: how many samples of each class every client has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import drawing
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading, sane

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED_CLIENTS = 20
"""Up to this number of clients there are names or numbers below the bars."""

_NAMED_CLASSES = 20
"""Up to this number of classes the scale of colours has their names."""


@dataclass(frozen=True)
class Shares:
    """The samples of clients by class.

    Attributes:
        counts: number of samples, `[client, class]`.
        classes: name of each class.
        clients: name of each client: that of its site if each client is one site, otherwise its number.
    """

    counts: np.ndarray
    classes: tuple[str, ...]
    clients: tuple[str, ...]


def read(path: Path) -> Shares:
    """Reads the shares of a run's clients from its record.

    Raises:
        InputError: if the record cannot be read, or an earlier version wrote it without labels.
    """
    try:
        with reading(path) as file:
            group = file["partition"]
            if "labels" not in group:
                raise InputError(
                    f"{path} does not hold the labels of the clients' samples, because an earlier "
                    "version wrote it: run it again for a round"
                )
            offsets, labels = (sane(file, f"partition/{name}")[:] for name in ("offsets", "labels"))
            sites = sane(file, "partition/sites")[:] if "sites" in group else None
            named = {
                key: tuple(map(str, json.loads(file.attrs.get(key, "[]"))))
                for key in ("class_names", "site_names")
            }
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no record at {path}") from error
    except Exception as error:  # over a damaged file h5py raises almost anything
        raise InputError(f"{path} is no readable record: {error}") from error
    sizes = np.diff(offsets)
    count = max(len(named["class_names"]), int(labels.max(initial=0)) + 1)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.bincount(owners * count + labels, minlength=len(sizes) * count)
    classes = named["class_names"] or tuple(map(str, range(count)))
    clients = _client_names(sites, offsets, named["site_names"])
    return Shares(counts.reshape(len(sizes), count), classes, clients)


def _client_names(
    sites: np.ndarray | None, offsets: np.ndarray, names: tuple[str, ...]
) -> tuple[str, ...]:
    numbers = tuple(map(str, range(len(offsets) - 1)))
    if sites is None or not names:
        return numbers
    own = [np.unique(sites[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)]
    firsts = [int(each[0]) for each in own if len(each) == 1]
    if len(firsts) < len(own) or len(set(firsts)) < len(firsts):
        return numbers
    return tuple(names[site] for site in firsts)


def write(path: Path, shares: Shares, title: str | None = None) -> None:
    """Draws and writes the figure; the same input gives the same bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    drawing.save(path, lambda: figure(shares, title))


def figure(shares: Shares, title: str | None = None) -> Figure:
    """Stacked bars: one bar per client, one colour per class."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    clients, classes = shares.counts.shape
    drawn, (ax,) = drawing.canvas(1, 1)
    drawn.set_figwidth(2 * drawn.get_figwidth())
    colours = colormaps["viridis"].resampled(classes)
    bottom = np.zeros(clients)
    for number in range(classes):
        height = shares.counts[:, number]
        width = 0.8 if clients <= _NAMED_CLIENTS else 1.0
        ax.bar(range(clients), height, width, bottom, color=colours(number), linewidth=0)
        bottom += height
    scale = ScalarMappable(BoundaryNorm(np.arange(classes + 1) - 0.5, classes), colours)
    bar = drawn.colorbar(scale, ax=ax, label="class", pad=0.02)
    if classes <= _NAMED_CLASSES:
        bar.set_ticks(range(classes), labels=shares.classes)
        bar.minorticks_off()
    if clients <= _NAMED_CLIENTS:
        ax.set_xticks(range(clients), shares.clients)
    ax.set_xlabel("client")
    ax.set_ylabel("training samples")
    ax.margins(x=0.01)
    ax.set_ylim(0, 1.05 * float(bottom.max()))
    if title:
        drawn.suptitle(title)
    return drawn
