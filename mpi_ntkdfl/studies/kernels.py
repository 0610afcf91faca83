"""The neural tangent kernel of a client of a run: spectrum, effective rank, labels, drift.

All kernels are trace kernels `K = (1/C) sum_c J_c J_c^T`, `[sample, sample]`, in float64 after their
computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.analysis.files import write_table
from mpi_ntkdfl.analysis.panels import Axis, Panel, Series, over_seeds
from mpi_ntkdfl.ntk.kernel import trace_kernel
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.studies.loaded import LoadedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARE = 0.99
"""The part of the trace that the leading eigenvalues must carry to be counted."""


@dataclass(frozen=True)
class Spectrum:
    """A kernel at some weights.

    Attributes:
        when: of the weights, for people.
        kernel: `[sample, sample]` float64.
        values: eigenvalues, largest first, `[sample]`. Those that are smaller than the rounding error of
            the kernel are 0.
        labels: part of the centred one-hot labels that lies in the span of the first k eigenvectors,
            for k = 1, ..., `[sample]`.
    """

    when: str
    kernel: np.ndarray
    values: np.ndarray
    labels: np.ndarray

    @property
    def effective_rank(self) -> float:
        """`exp(-sum p log p)` of the normalised eigenvalues p (Roy and Vetterli, EUSIPCO 2007)."""
        shares = self.values / self.values.sum()
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))

    @property
    def carried(self) -> int:
        """How many eigenvalues carry 99 % of the trace."""
        return int((np.cumsum(self.values) < _SHARE * self.values.sum()).sum()) + 1

    def alignment(self, other: np.ndarray) -> float:
        """The cosine `<H K H, H M H> / (|H K H| |H M H|)` with another kernel M, H the centring matrix.

        With `M = Y Y^T` for one-hot labels Y it tells how well the kernel fits the labels (Cortes, Mohri,
        Rostamizadeh, JMLR 2012). NaN if a centred kernel is 0, as for samples of one class.
        """
        own, second = _centred(self.kernel), _centred(other)
        norms = float(np.linalg.norm(own) * np.linalg.norm(second))
        return float((own * second).sum()) / norms if norms else float("nan")

    def change(self, before: Spectrum) -> float:
        """The relative change `|K - K'| / |K'|` since the kernel K' at earlier weights."""
        return float(np.linalg.norm(self.kernel - before.kernel) / np.linalg.norm(before.kernel))


@dataclass(frozen=True)
class Diagnosis:
    """The kernels of one client at the start, one round ago, and now.

    Attributes:
        client: its number.
        clients: whose samples the kernels are of: the client, or its closed neighbourhood.
        classes: number of samples of each class, `[class]`.
        same_class: `Y Y^T` of the one-hot labels, `[sample, sample]`.
        spectra: in the order of time; the last one is that of the newest checkpoint.
    """

    client: int
    clients: tuple[int, ...]
    classes: np.ndarray
    same_class: np.ndarray
    spectra: tuple[Spectrum, ...]


def diagnose(run: LoadedRun, client: int, neighbourhood: bool) -> Diagnosis:
    """Computes the kernels of a client.

    Args:
        run: the run.
        client: its number.
        neighbourhood: whether to take the samples of its closed neighbourhood in the graph of the last
            round, and the plain average of the neighbourhood's weights, instead of its own.

    Raises:
        InputError: if there is no such client, or the client has no neighbourhood.
    """
    if not 0 <= client < len(run.params):
        raise InputError(f"clients are 0 to {len(run.params) - 1} in this run, got {client}")
    clients = _closed(run.edges, client) if neighbourhood else (client,)
    if neighbourhood and len(clients) == 1:
        raise InputError(
            f"client {client} has no neighbours in the graph of round {run.round}: leave --neighbourhood "
            "out, or choose another client"
        )
    samples, classes = run.own(clients), run.network.classes
    one_hot = np.eye(classes)[samples.labels.numpy()]
    at = {"at the start": torch.cat([run.start(range(c, c + 1)) for c in clients])}
    if run.former is not None and run.round > 1:
        at[f"after round {run.round - 1}"] = run.former[list(clients)]
    at[f"after round {run.round}"] = run.params[list(clients)]
    spectra = tuple(
        _spectrum(run, when, weights.double().mean(0).to(run.params.dtype), samples.inputs, one_hot)
        for when, weights in at.items()
    )
    return Diagnosis(client, clients, one_hot.sum(0).astype(int), one_hot @ one_hot.T, spectra)


def _closed(edges: np.ndarray, client: int) -> tuple[int, ...]:
    """A client and its neighbours, in ascending order."""
    touching = edges[(edges == client).any(axis=1)]
    return tuple(sorted({client, *touching.ravel().tolist()}))


def _spectrum(
    run: LoadedRun, when: str, params: torch.Tensor, inputs: torch.Tensor, one_hot: np.ndarray
) -> Spectrum:
    jacobian = run.network.jacobian(params, inputs)
    kernel = trace_kernel(jacobian, run.network.classes).double().numpy()
    values, vectors = np.linalg.eigh(kernel)
    values, vectors = values[::-1], vectors[:, ::-1]
    values = np.where(values > values[0] * torch.finfo(params.dtype).eps, values, 0)
    targets = one_hot - one_hot.mean(0)
    energy = ((vectors.T @ targets) ** 2).sum(1)
    total = float((targets**2).sum())
    shares = np.cumsum(energy) / total if total else np.full(len(values), np.nan)
    return Spectrum(when, kernel, values, shares)


def _centred(kernel: np.ndarray) -> np.ndarray:
    rows = kernel - kernel.mean(0)
    centred: np.ndarray = rows - rows.mean(1, keepdims=True)
    return centred


def text(diagnosis: Diagnosis) -> str:
    """The numbers for people: one column per time."""
    spectra, classes = diagnosis.spectra, len(diagnosis.classes)
    first, labels = spectra[0], diagnosis.same_class
    others = ", ".join(str(each) for each in diagnosis.clients if each != diagnosis.client)
    rows: list[tuple[str, Callable[[Spectrum], str]]] = [
        ("", lambda each: each.when),
        ("largest eigenvalue", lambda each: f"{each.values[0]:.4g}"),
        ("trace", lambda each: f"{each.values.sum():.4g}"),
        ("effective rank", lambda each: f"{each.effective_rank:.2f}"),
        (f"eigenvalues with {_SHARE:.0%} of the trace", lambda each: f"{each.carried}"),
        ("alignment with the labels", lambda each: f"{each.alignment(labels):.3f}"),
        (
            f"labels in the first {classes} eigenvectors",
            lambda each: f"{each.labels[:classes][-1]:.1%}",
        ),
        ("relative change since the start", lambda each: f"{each.change(first):.3f}"),
        (
            "alignment with the kernel at the start",
            lambda each: f"{each.alignment(first.kernel):.3f}",
        ),
    ]
    columns = [[name for name, _ in rows]]
    columns += [[cell(each) for _, cell in rows] for each in spectra]
    wide = [max(map(len, column)) for column in columns]
    table = [
        "  ".join(
            [f"{name:{wide[0]}}", *(f"{c:>{w}}" for c, w in zip(cells, wide[1:], strict=True))]
        )
        for name, *cells in zip(*columns, strict=True)
    ]
    return "\n".join(
        [
            f"kernel of the {len(labels)} samples of client {diagnosis.client}"
            + (f" and its neighbours {others}" if others else ""),
            f"samples by class: {' '.join(map(str, diagnosis.classes))}",
            *table,
        ]
    )


def write_csv(path: Path, diagnosis: Diagnosis) -> None:
    """Writes one row per eigenvalue: its place, and for every time its value and the labels so far.

    Raises:
        InputError: if the file cannot be written.
    """
    head, columns = ["eigenvalue"], [range(1, len(diagnosis.spectra[0].values) + 1)]
    for each in diagnosis.spectra:
        head += [f"{each.when}: value", f"{each.when}: part of the labels"]
        columns += [each.values.tolist(), each.labels.tolist()]
    write_table(path, head, zip(*columns, strict=True))


def write_figure(path: Path, diagnosis: Diagnosis) -> None:
    """Draws eigenvalues, and the part of the labels in the leading eigenvectors.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    drawing.save(path, lambda: _figure(panels(diagnosis)))


def panels(diagnosis: Diagnosis) -> Sequence[Panel]:
    """The numbers of the figure."""
    across = Axis("eigenvalue", "number of the eigenvalue, largest first", log=True)
    up = (Axis("value", "eigenvalue", log=True), Axis("labels", "part of the labels"))
    return [
        Panel(
            "",
            across,
            axis,
            tuple(_line(each.when, getattr(each, name)) for each in diagnosis.spectra),
        )
        for axis, name in zip(up, ("values", "labels"), strict=True)
    ]


def _line(label: str, values: np.ndarray) -> Series:
    return over_seeds(label, "", np.arange(1, len(values) + 1), values[None])


def _figure(made: Sequence[Panel]) -> Figure:
    drawn, axes = drawing.canvas(len(made), len(made))
    looks = style.styles([line.label for line in made[0].lines], {})
    explained: drawing.Legend = []
    for ax, panel in zip(axes, made, strict=True):
        explained = drawing.lines(ax, panel, looks)
        drawing.scale(ax, panel)
    drawing.legend(drawn, explained, spread=False)
    return drawn
