"""Reasons why a comparison of some runs may be unfair."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from mpi_ntkdfl.analysis.starts import over_time
from mpi_ntkdfl.analysis.traces import (
    PATHS,
    Group,
    Trace,
    as_yaml,
    differing,
    exactly,
    must_agree,
    named_contents,
)
from mpi_ntkdfl.metrics import ACCURACY


def warnings(groups: Sequence[Group]) -> list[str]:
    """The reasons why a comparison of these runs may be unfair, one line each."""
    lines = []
    if unfair := _unfair(groups):
        lines.append(f"no fair comparison, the runs differ in: {'; '.join(unfair)}")
    traces = [trace for group in groups for trace in group.traces]
    if machines := _spelled([trace.machine for trace in traces]):
        lines.append(f"seconds were not measured alike: {'; '.join(machines)}")
    for each in traces:
        told = [start.machine for start in each.starts]
        if changed := [f"{key} {over_time(told)[key]}" for key in differing(told)]:
            lines.append(f"{each.name} was resumed on another machine: {'; '.join(changed)}")
    if codes := _spelled([_code_told(trace) for trace in traces]):
        lines.append(f"the runs were not computed by the same code: {'; '.join(codes)}")
    for each in traces:
        done = int(each.rounds[-1]) if len(each.rounds) else 0
        if done != each.settings["rounds"] and not each.stopped:
            lines.append(f"{each.name} has {done} of {each.settings['rounds']} rounds")
    for group in groups:
        again = Counter((trace.seed, trace.partition) for trace in group.traces)
        twice = [trace.name for trace in group.traces if again[trace.seed, trace.partition] > 1]
        if twice:
            lines.append(f"{', '.join(twice)} are one seed, and count as several")
    return lines


def _code_told(trace: Trace) -> dict[str, str]:
    """What computed a run, for people; every run since there are plugins tells which it used."""
    missing = {"sources": "not recorded", "plugins": "no plugin"}
    return {what: told or missing[what] for what, told in trace.code.items()}


def _unfair(groups: Sequence[Group]) -> list[str]:
    """Differences between groups that make a comparison unfair: settings, seeds, samples, weights."""
    settings = [group.traces[0].settings for group in groups]
    unlike = [key for key in differing(settings) if must_agree(key)]
    contents = named_contents([group.traces[0] for group in groups])
    if _crossed(settings, unlike, contents):
        # These settings are what is compared. When a run is measured is none of them, and neither is a
        # file that has changed under one path.
        unlike = [key for key in unlike if key == "evaluation.every"]
        chosen = differing(settings)
        contents = [{k: v for k, v in each.items() if PATHS[k] not in chosen} for each in contents]
    elif "dataset.name" in unlike:  # other data, which goes without saying
        contents = [{k: v for k, v in each.items() if k != "data"} for each in contents]
    reasons = _spelled([{k: each[k] for k in unlike if k in each} for each in settings])
    reasons += _spelled(contents)
    seeds = [{trace.seed for trace in group.traces} for group in groups]
    if any(each != seeds[0] for each in seeds):
        reasons.append("seeds " + " / ".join(",".join(map(str, sorted(s, key=str))) for s in seeds))
    common = set.intersection(*seeds)

    def differ(what: Callable[[Trace], object], given: Sequence[str]) -> bool:
        """Whether groups that agree in some sections differ in something under the same seed."""
        told: dict[str, list[set[tuple[object, object]]]] = {}
        for group in groups:
            own = {k: v for k, v in group.traces[0].settings.items() if k.split(".")[0] in given}
            seen = {(t.seed, what(t)) for t in group.traces if t.seed in common}
            told.setdefault(exactly(own), []).append(seen)
        return any(each != alike[0] for alike in told.values() for each in alike)

    if differ(lambda trace: trace.partition, ("dataset", "partition", "clients")):
        reasons.append("the clients' samples under the same seed")
    started = ("dataset", "clients", "model", "compute")
    if differ(lambda trace: trace.curves[ACCURACY.name][:1].tobytes(), started):
        reasons.append("the accuracy at the start under the same seed")
    return reasons


def _crossed(
    settings: Sequence[Mapping[str, object]],
    unlike: Sequence[str],
    contents: Sequence[Mapping[str, str]],
) -> bool:
    """Whether the configurations are a full grid of methods and of the sections that differ.

    Then every difference belongs to one factor, and the factors are compared, such as one method on two
    graphs, or two methods on each of two graphs. Two methods on one graph each are not a grid, because
    the effects of method and graph cannot be separated.
    """
    sections = dict.fromkeys(key.partition(".")[0] for key in unlike)
    sections |= {PATHS[name].partition(".")[0]: None for name in differing(contents)}
    rows = []
    for own, held in zip(settings, contents, strict=True):
        levels = [[v for k, v in own.items() if k.partition(".")[0] == "algorithm"]]
        for section in sections:
            files = [held[n] for n, at in PATHS.items() if at.partition(".")[0] == section]
            chosen = [own.get(key) for key in unlike if key.partition(".")[0] == section]
            levels.append([*chosen, *files])
        rows.append([exactly(level) for level in levels])
    distinct = [len({row[place] for row in rows}) for place in range(len(sections) + 1)]
    return len({tuple(row) for row in rows}) == math.prod(distinct)


def _spelled(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """`topology.degree 5 / 10` for every key that differs."""
    return [
        f"{key} " + " / ".join(dict.fromkeys(as_yaml(m.get(key, "none")) for m in mappings))
        for key in differing(mappings)
    ]
