"""Scaling studies and predictions as text for people and as CSV for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpi_ntkdfl.analysis.files import require_suffix, write_table
from mpi_ntkdfl.analysis.scaling import Point, Study
from mpi_ntkdfl.analysis.scaling_model import Model, Network, Prediction, model, predict
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.units import readable

_NOTES = (
    "seconds: median round of the slowest rank, without evaluating and recording",
    "efficiency: speed-up over how many times more ranks there are",
    "load: mean over largest computation of the ranks; comm: largest computation over seconds;",
    "parallel: load x comm (POP Centre of Excellence)",
)
_COLUMNS = ("speed_up", "efficiency", "load_balance", "communication", "parallel")


def text(studies: Sequence[Study], net: Network) -> str:
    """Tables of figures and of phases, Amdahl's law, and a check of the model, for every study."""
    blocks = [block for study in studies for block in _study(study, net)]
    return "\n\n".join("\n".join(block) for block in (*blocks, _NOTES))


def _study(study: Study, net: Network) -> list[list[str]]:
    figures = [
        study.label,
        f"{'ranks':>6}{'cores':>7}{'clients':>9}{'rounds':>8}{'seconds':>10}{'speed-up':>10}"
        f"{'efficiency':>12}{'load':>7}{'comm':>7}{'parallel':>10}",
    ]
    for point in study.points:
        figures.append(
            f"{point.ranks:>6}{point.cores or '?':>7}{point.clients:>9}{point.rounds:>8}"
            f"{point.wall:>10.3f}{study.speed_up(point):>10.2f}{study.efficiency(point):>12.2f}"
            f"{point.load_balance:>7.2f}{point.communication:>7.2f}{point.parallel:>10.2f}"
        )
    if fit := study.amdahl():
        founded = ", ".join(map(str, fit.ranks))
        figures.append(
            f"Amdahl: serial fraction {fit.serial:.3f}, T(1) = {fit.single:.3f} s; least squares over "
            f"ranks {founded}, off by {100 * fit.residual:.0f} % (root mean square)"
        )
        if len(set(fit.ranks)) < 3:
            figures.append("  two numbers of ranks determine the fit and cannot test it")
    return [figures, _phases(study), _checked(study, net)]


def _phases(study: Study) -> list[str]:
    points = study.points
    shown = [name for name in points[0].phases if any(point.phase(name) for point in points)]
    lines = ["seconds per round by phase, mean over ranks"]
    lines.append(f"{'ranks':>6}" + "".join(f"{name:>10}" for name in shown))
    for point in points:
        cells = "".join(f"{point.phase(name):>10.3f}" for name in shown)
        lines.append(f"{point.ranks:>6}{cells}")
    return lines


def _checked(study: Study, net: Network) -> list[str]:
    base = study.points[0]
    try:
        basis = model([base])
    except InputError as error:
        return [f"no prediction: {error}"]
    lines = [
        f"predicted from {base.name} only (alpha {net.alpha:g} s, beta {readable(net.beta)}/s)",
        f"{'ranks':>6}{'predicted':>11}{'measured':>10}{'ratio':>7}",
    ]
    for point in study.points:
        seconds = predicted_on(basis, point, net)
        lines.append(
            f"{point.ranks:>6}{seconds:>11.3f}{point.wall:>10.3f}{seconds / point.wall:>7.2f}"
        )
    return lines


def predicted_on(basis: Model, point: Point, net: Network) -> float:
    """Predicted seconds per round for the ranks of `point`; ranks that share cores take turns."""
    turns = max(1.0, point.ranks * point.threads / point.cores) if point.cores else 1.0
    return predict(basis, point.ranks, point.clients, net).wall * turns


def prediction(basis: Model, one: Prediction, named: str, net: Network) -> str:
    """The part of the text with the predictions."""
    lines = [
        f"measured in {', '.join(basis.names)}: milliseconds per client and round",
        *(f"  {phase:12}{1e3 * each:>10.3f}" for phase, each in basis.client_seconds.items()),
        "",
        f"PREDICTED, not measured: {one.clients} clients on {one.ranks} ranks, each with a core of "
        f"its own, over {named} (alpha {net.alpha:g} s, beta {readable(net.beta)}/s; nominal)",
        *(f"  {phase:12}{each:>10.4f} s" for phase, each in one.seconds.items()),
        f"  {'round':12}{one.wall:>10.4f} s, {1 / one.wall:.3g} rounds per second",
        f"  bytes per rank and round: {readable(one.sent)} to {one.neighbours:.0f} other ranks",
        f"  largest over mean computation of the ranks: {one.imbalance:.2f}",
    ]
    return "\n".join(lines)


def write_csv(path: Path, studies: Sequence[Study]) -> None:
    """Writes one line per run of every study.

    Raises:
        InputError: if the name does not end in .csv, or the file cannot be written.
    """
    require_suffix(path, "csv")
    phases = list(dict.fromkeys(p for study in studies for p in study.points[0].phases))
    head = ["study", "kind", "file", "ranks", "cores", "clients", "rounds", "seconds"]
    head += [*_COLUMNS, "serial_fraction", *(f"{p}_seconds" for p in phases)]
    rows = []
    for study in studies:
        fit = study.amdahl()
        for p in study.points:
            efficiencies = study.efficiency(p), p.load_balance, p.communication, p.parallel
            rows.append(
                [
                    *(study.label, study.kind, p.name, p.ranks, p.cores or "", p.clients),
                    *(p.rounds, p.wall, study.speed_up(p), *efficiencies),
                    fit.serial if fit else "",
                    *(p.phase(name) if name in p.phases else "" for name in phases),
                ]
            )
    write_table(path, head, rows)
