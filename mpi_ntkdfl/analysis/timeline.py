"""Draws one round from the timeline of a run, ranks against time, with its efficiencies.

Efficiencies are those of the POP Centre of Excellence, as in `scaling`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.runtime.clock import PHASES, WAIT
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import BLUE, DARK_GREY, GREEN, ORANGE, PURPLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COMPUTING = (BLUE, GREEN, PURPLE, ORANGE, DARK_GREY)
_OTHERS = {
    "exchange": VERMILION,
    WAIT: "#DDDDDD",
    "agree": "#A0A0A0",
    "gather": "#707070",
    "connect": "#C8B0A0",
    "graph": "#B5A36A",
    "evaluate": "#F0D9C0",
    "record": "#B0C4D4",
    "other": "#EFEFEF",
}
"""Phases in which a rank does not compute for the method."""


@dataclass(frozen=True)
class Round:
    """The phases of all ranks in a round.

    Attributes:
        number: number of rounds that were done at its end.
        names: names of the ranks with their hosts, `[rank]`.
        spans: rank, phase, begin and end in seconds; a span inside another one comes after it.
    """

    number: int
    names: tuple[str, ...]
    spans: tuple[tuple[int, str, float, float], ...]

    @property
    def seconds(self) -> float:
        """Seconds from the first begin to the last end."""
        return max(end for *_, end in self.spans) - min(begin for *_, begin, _ in self.spans)

    def computation(self) -> np.ndarray:
        """Seconds of useful computation, `[rank]`, without spans inside other phases."""
        totals = np.zeros(len(self.names))
        for rank, phase, begin, end in self._exclusive():
            if phase not in _OTHERS:
                totals[rank] += end - begin
        return totals

    def _exclusive(self) -> Iterator[tuple[int, str, float, float]]:
        """Spans without overlap: a span with others inside is cut into the parts around them."""
        for rank in range(len(self.names)):
            own = [s for s in self.spans if s[0] == rank and s[1] in PHASES]
            cuts = sorted({at for *_, begin, end in own for at in (begin, end)})
            for begin, end in zip(cuts, cuts[1:], strict=False):
                inner = [s for s in own if s[2] <= begin and end <= s[3]]
                if inner:
                    yield rank, min(inner, key=lambda s: s[3] - s[2])[1], begin, end


def read(path: Path, number: int) -> Round:
    """The round after which `number` rounds were done.

    Args:
        path: path of the timeline, `RUN.trace.json`.
        number: number of the round, from 1.

    Raises:
        InputError: if there is no such file, or it lacks the round.
    """
    hosts: dict[int, str] = {}
    spans: list[tuple[int, str, float, float]] = []
    try:
        for event in _events(path):
            if event["ph"] == "M":
                if event["name"] == "process_name":
                    hosts[event["tid"]] = event["args"]["name"]
            elif event["ph"] == "X" and event["args"]["round"] == number:
                begin = event["ts"] / 1e6
                spans.append((event["tid"], event["name"], begin, begin + event["dur"] / 1e6))
    except OSError as error:
        raise InputError(
            f"there is no timeline {path} ({error.strerror}): run with --set output.trace=true"
        ) from error
    except (LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged or no timeline of this program: {error!r}") from error
    if not spans:
        raise InputError(f"{path} holds no round {number}")
    count = 1 + max(*hosts, *(span[0] for span in spans))
    names = tuple(f"{hosts.get(rank, '?')}, rank {rank}" for rank in range(count))
    spans.sort(key=lambda span: span[2] - span[3])
    return Round(number, names, tuple(spans))


def _events(path: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line.rstrip(","))
        except ValueError:
            continue  # the brackets of the array, or a line that a kill cut
        if isinstance(event, dict):
            yield event


def write(path: Path, shown: Round) -> None:
    """Draws and writes a figure.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    drawing.save(path, lambda: figure(shown))


def figure(shown: Round) -> Figure:
    """One row per rank and one colour per phase; waiting and work outside the method are pale."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height = max(style.HEIGHT, 0.6 + 0.18 * len(shown.names))
    drawn = Figure(figsize=(style.PAGE, height), layout="constrained")
    panel = drawn.subplots()
    start = min(begin for *_, begin, _ in shown.spans)
    colors = _colors(sorted({phase for _, phase, *_ in shown.spans}))
    for rank, phase, begin, end in shown.spans:
        panel.broken_barh(
            [(begin - start, end - begin)], (rank - 0.4, 0.8), color=colors[phase], linewidth=0
        )
    panel.set_yticks(range(len(shown.names)), shown.names)
    panel.invert_yaxis()
    panel.set_xlabel(f"seconds of round {shown.number}")
    computed = shown.computation()
    load = computed.mean() / computed.max() if computed.any() else float("nan")
    share = min(computed.max() / shown.seconds, 1.0)
    panel.set_title(
        f"load balance {load:.2f}, communication efficiency {share:.2f}, parallel efficiency "
        f"{load * share:.2f}",
        loc="left",
    )
    patches = [Patch(color=color, label=phase) for phase, color in colors.items()]
    drawn.legend(handles=patches, loc="outside lower center", ncols=6)
    return drawn


def _colors(phases: Sequence[str]) -> dict[str, str]:
    """Strong colours for computing and exchanging, pale ones for the rest."""
    computing = [phase for phase in phases if phase not in _OTHERS]
    colors = {phase: _COMPUTING[n % len(_COMPUTING)] for n, phase in enumerate(computing)}
    return colors | {phase: color for phase, color in _OTHERS.items() if phase in phases}
