"""How long a round takes: a pure function of its messages, of computation, links and waiting.

A round is a sequence of legs. In a leg nodes compute and then send messages. Messages of the next leg
depend on those of this one. After the last leg nodes may compute again. Nodes are the clients 0 to M-1
and, as node M, a server. All times are seconds on the federation's clock.

- `barrier`: all nodes that take part begin to send together, when the slowest one has computed. A leg
  ends when its last message is in.
- `neighbours`: a node goes on when all messages that are sent to it are in.
- `deadline`: a round lasts at most D. It has n steps: its legs, and the computation after them if there
  is any. They end at the latest after D / n, 2 D / n, ..., and earlier if all is done. A message that
  comes after the end of its leg is late. Its target neither uses it nor waits for it, and takes its
  source for absent in the rest of the round. A node that is not ready when a round begins does not take
  part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.config.environment import Barrier, Deadline, Neighbours
from mpi_ntkdfl.environment.links import Floats, Integers, Links

Truths = np.ndarray
"""An array of booleans."""


@dataclass(frozen=True)
class Leg:
    """One step of a round.

    Attributes:
        compute: seconds that each node computes before it sends, `[node]`.
        source: node that sends each message, `[message]`.
        target: node that receives it, `[message]`.
        nbytes: its length, `[message]`.
    """

    compute: Floats
    source: Integers
    target: Integers
    nbytes: Floats

    def travel(self, links: Links) -> Floats:
        """Seconds that each message is on its way, `[message]`."""
        return links.seconds(self.source, self.target, self.nbytes)


@dataclass(frozen=True)
class Timing:
    """When a round ended.

    Attributes:
        end: when the round is over for the federation.
        nodes: when each node was done with its own part of the round, `[node]`. A node that did not take
            part has its former time, or the first time at which another was done, if that is later.
        late: for each leg which of its messages were late, `[message]`.
    """

    end: float
    nodes: Floats
    late: tuple[Truths, ...]


def simulate(
    legs: Sequence[Leg],
    rest: Floats,
    taking_part: Truths,
    start: float,
    clocks: Floats,
    links: Links,
    waiting: Barrier | Neighbours | Deadline,
) -> Timing:
    """Simulates one round.

    Args:
        legs: the legs of the round; messages are between nodes that take part.
        rest: seconds that each node computes after the last leg, `[node]`.
        taking_part: which nodes take part, `[node]`; at least one.
        start: when the round begins for the federation.
        clocks: when each node was done with the round before, `[node]`.
        links: between the nodes.
        waiting: for whom a node waits.
    """
    if isinstance(waiting, Neighbours):
        end, ready, late = _by_neighbours(legs, rest, clocks, links, taking_part)
    elif isinstance(waiting, Deadline):
        end, ready, late = _by_deadline(
            legs, rest, taking_part, start, clocks, links, waiting.seconds
        )
    else:
        end, ready, late = _by_barrier(legs, rest, taking_part, start, links)
    first = float(ready[taking_part].min())
    nodes = np.where(taking_part, ready, np.maximum(clocks, first))
    return Timing(end, nodes, late)


def _by_barrier(
    legs: Sequence[Leg], rest: Floats, taking_part: Truths, start: float, links: Links
) -> tuple[float, Floats, tuple[Truths, ...]]:
    now = start
    for leg in legs:
        now += _longest(leg.compute[taking_part])
        now += _longest(leg.travel(links))
    ready = now + rest
    return float(ready[taking_part].max()), ready, tuple(_none(leg) for leg in legs)


def _by_neighbours(
    legs: Sequence[Leg], rest: Floats, clocks: Floats, links: Links, taking_part: Truths
) -> tuple[float, Floats, tuple[Truths, ...]]:
    ready = clocks
    for leg in legs:
        ready = ready + leg.compute
        arrivals = ready[leg.source] + leg.travel(links)
        ready = _latest(ready, leg.target, arrivals)
    ready = ready + rest
    return float(ready[taking_part].max()), ready, tuple(_none(leg) for leg in legs)


def _by_deadline(
    legs: Sequence[Leg],
    rest: Floats,
    taking_part: Truths,
    start: float,
    clocks: Floats,
    links: Links,
    seconds: float,
) -> tuple[float, Floats, tuple[Truths, ...]]:
    steps = len(legs) + bool(rest[taking_part].any())
    ready, now, late = np.maximum(clocks, start), start, []
    given_up = np.zeros(0, dtype=np.int64)
    for number, leg in enumerate(legs, 1):
        closes = start + seconds * number / steps
        ready = ready + leg.compute
        arrivals = ready[leg.source] + leg.travel(links)
        pairs = leg.source * len(clocks) + leg.target
        ignored = np.isin(pairs, given_up)
        missed = (arrivals > closes) | ignored
        given_up = np.union1d(given_up, pairs[missed])
        # Whoever misses a message learns that when the leg closes.
        waited = np.where(ignored, start, np.minimum(arrivals, closes))
        ready = _latest(ready, leg.target, waited)
        now = min(closes, max(now, _longest(ready[taking_part])))
        ready = np.maximum(ready, now)
        late.append(missed)
    ready = ready + rest
    return min(start + seconds, max(now, _longest(ready[taking_part]))), ready, tuple(late)


def _latest(ready: Floats, target: Integers, arrivals: Floats) -> Floats:
    """The later of a node's own time and of the arrivals at it, `[node]`."""
    latest = ready.copy()
    np.maximum.at(latest, target, arrivals)
    return latest


def _longest(seconds: Floats) -> float:
    return float(seconds.max(initial=0.0))


def _none(leg: Leg) -> Truths:
    return np.zeros(len(leg.source), dtype=bool)
