"""Variants of an axis, such as methods, compared seed by seed: paired differences, and ranks over blocks.

A block is what the variants share: one variant of every other axis, and a seed. In a block all variants
have the same samples, starting weights and graphs, so differences within blocks have less spread than
the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpi_ntkdfl.analysis.files import write_table
from mpi_ntkdfl.metrics import ACCURACY, ROUNDS
from mpi_ntkdfl.studies.collect import Results

CONFIDENCE = 0.95
"""Of the intervals, and of the critical difference of ranks."""

_AT_END = "accuracy at the end"

COLUMNS = ("where", "number", "variant", "reference", "difference", "low", "high", "seeds")


@dataclass(frozen=True)
class Difference:
    """A variant minus the reference, for the same seeds.

    Attributes:
        where: the variants of the other axes; empty if there is no other axis.
        number: what is compared, such as `accuracy at the end`.
        variant: its label.
        values: one difference per seed; empty if a number is missing in a run of each seed.
        seeds: number of seeds that both have finished. If it is above the number of values, some runs did
            not reach the target.
    """

    where: str
    number: str
    variant: str
    values: tuple[float, ...]
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of Student's t for the mean difference; NaN for less than two values."""
        from scipy.stats import t

        count = len(self.values)
        if count < 2:
            return float("nan"), float("nan")
        width = (
            t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(self.values, ddof=1) / np.sqrt(count)
        )
        mean = float(np.mean(self.values))
        return mean - float(width), mean + float(width)


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of variants by the accuracy at the end, 1 for the best (Demsar, JMLR 2006).

    Attributes:
        means: by the variant's label, best first.
        blocks: number of blocks in which every variant is finished.
        chance: the p value of Friedman's test that all variants are alike; NaN if it cannot be tested.
        critical: the smallest difference of mean ranks that Nemenyi's test calls significant, or NaN.
    """

    means: Mapping[str, float]
    blocks: int
    chance: float
    critical: float


@dataclass(frozen=True)
class Paired:
    """Differences to a reference, and ranks.

    Attributes:
        reference: the first variant of the axis.
        differences: of every other variant.
        ranks: None if no block is complete.
    """

    reference: str
    differences: tuple[Difference, ...]
    ranks: Ranks | None


def paired(results: Results, axis: str) -> Paired | None:
    """Compares the variants of an axis.

    Args:
        results: the finished runs.
        axis: name of the axis; its first variant is the reference.

    Returns:
        The comparison; None if the axis has only one variant.
    """
    study = results.study
    place = results.place(axis)
    order = [each.label for each in study.definition.axes[place].at(study.scale)]
    if len(order) == 1:
        return None
    targets = study.definition.scale(study.scale).targets
    numbers: dict[tuple[str, object], dict[str, dict[str, float]]] = {}
    for cell in results.cells:
        where = cell.label_without([place])
        for finished in cell.finished:
            trace = finished.trace
            own = {_AT_END: float(trace.curves[ACCURACY.name][-1])}
            for target in targets:
                row = trace.first(target)
                done = np.nan if row is None else float(trace.curves[ROUNDS.name][row])
                own[f"rounds to {target:g}"] = done
            block = numbers.setdefault((where, trace.seed), {})
            block[cell.variants[place].label] = own
    reference = order[0]
    names = [_AT_END, *(f"rounds to {target:g}" for target in targets)]
    differences = []
    for where in dict.fromkeys(where for where, _ in numbers):
        for name in names:
            for label in order[1:]:
                both = [
                    (block[label][name], block[reference][name])
                    for (here, _), block in numbers.items()
                    if here == where and {label, reference} <= set(block)
                ]
                values = tuple(a - b for a, b in both if not np.isnan(a - b))
                differences.append(Difference(where, name, label, values, len(both)))
    complete = [block for block in numbers.values() if set(order) <= set(block)]
    accuracy = np.array([[block[label][names[0]] for label in order] for block in complete])
    return Paired(reference, tuple(differences), _ranks(order, accuracy) if complete else None)


def _ranks(order: Sequence[str], accuracy: np.ndarray) -> Ranks:
    """Ranks the columns of `accuracy` `[block, variant]`."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    blocks, count = accuracy.shape
    means = rankdata(-accuracy, axis=1).mean(axis=0)
    best = sorted(zip(order, means.tolist(), strict=True), key=lambda pair: pair[1])
    chance = critical = float("nan")
    if blocks > 1 and count > 2:
        chance = float(friedmanchisquare(*accuracy.T).pvalue)
        spread = studentized_range.ppf(CONFIDENCE, count, np.inf) / np.sqrt(2)
        critical = float(spread * np.sqrt(count * (count + 1) / (6 * blocks)))
    return Ranks(dict(best), blocks, chance, critical)


def text(pairs: Paired) -> str:
    """The tables for people."""
    lines = [
        f"differences to {pairs.reference}, seed by seed: mean, {CONFIDENCE:.0%} interval of Student's t"
    ]
    rows = []
    for each in pairs.differences:
        name = ", ".join(part for part in (each.where, each.variant, each.number) if part)
        digits = 4 if each.number == _AT_END else 1
        if len(each.values) < each.seeds or not each.values:
            rows.append(
                (name, f"{len(each.values)} of {each.seeds} seeds have this number in both")
            )
            continue
        low, high = each.interval
        spread = "one seed" if np.isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"
        rows.append((name, f"{np.mean(each.values):+.{digits}f}  ({spread})"))
    lines += _aligned(rows)
    if (ranks := pairs.ranks) is not None:
        lines.append(f"mean rank by accuracy at the end over {ranks.blocks} blocks, 1 is the best:")
        lines += _aligned([(label, f"{mean:.2f}") for label, mean in ranks.means.items()])
        if not np.isnan(ranks.chance):
            lines.append(
                f"  Friedman's test: p = {ranks.chance:.2g}; a difference of ranks from "
                f"{ranks.critical:.2f} on is significant (Nemenyi)"
            )
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    wide = max(len(name) for name, _ in rows)
    return [f"  {name:{wide}}  {value}" for name, value in rows]


def write_csv(path: Path, pairs: Paired) -> None:
    """Writes one row per difference.

    Raises:
        InputError: if the file cannot be written.
    """
    rows = []
    for each in pairs.differences:
        mean = float(np.mean(each.values)) if each.values else float("nan")
        numbers = (mean, *each.interval, len(each.values))
        rows.append([each.where, each.number, each.variant, pairs.reference, *numbers])
    write_table(path, COLUMNS, rows)
