"""How many samples of each class and site a data set has, as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mpi_ntkdfl.data.dataset import Dataset, Labels

_MOST = 50
"""Lines of a table; further classes or sites are summed up in one line."""


def text(dataset: Dataset) -> str:
    """A line about the data set, a table by class, and one by site if there are sites."""
    shape = " x ".join(map(str, dataset.shape))
    lines = [
        f"{dataset.name}: {len(dataset.train_labels)} training and {len(dataset.test_labels)} test "
        f"samples of shape {shape} ({dataset.train_inputs.dtype}), {dataset.classes} classes",
        "",
    ]
    lines += _table(
        "class", dataset.class_names, dataset.classes, dataset.train_labels, dataset.test_labels
    )
    if dataset.sites is not None:
        sites = int(dataset.sites.max(initial=-1)) + 1
        lines += ["", *_table("site", dataset.site_names, sites, dataset.sites, dataset.test_sites)]
    return "\n".join(lines)


def _table(
    what: str, names: tuple[str, ...], count: int, train: Labels, test: Labels | None
) -> Iterator[str]:
    """A head, and a line per class or site with its samples; `test` is None if it is not known."""
    columns = [np.bincount(train, minlength=count)]
    columns += [] if test is None else [np.bincount(test, minlength=count)]
    shown = [repr(name)[1:-1] for name in names] or [str(number) for number in range(count)]
    width = max(len(what), *(len(name) for name in shown[:_MOST])) + 2
    heads = ("training", "test")[: len(columns)]
    yield f"{what:{width}}" + "".join(f"{head:>10}" for head in heads)
    for number in range(min(count, _MOST)):
        yield f"{shown[number]:{width}}" + "".join(f"{each[number]:>10}" for each in columns)
    if count > _MOST:
        rest = "".join(f"{each[_MOST:].sum():>10}" for each in columns)
        yield f"{f'{count - _MOST} more':{width}}{rest}"
