"""The shuffle of Python's `random.Random`, made of arrays: the same order for the same state.

Graphs are drawn with Python's generator, so that they stay those of networkx. For 500,000 values its
shuffle takes 0.19 s, more than all other steps of a draw together.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_FEW = 4096
"""Values up to which Python's own shuffle is faster."""

_WORDS = 624
"""32-bit words in the state of the Mersenne twister."""


def shuffled(generator: random.Random, values: Integers) -> Integers:
    """What `generator.shuffle` would make of `values` `[n]`, n < 2^32; the generator moves on alike."""
    if len(values) <= _FEW:
        order = values.tolist()
        generator.shuffle(order)
        return np.array(order, dtype=np.int64)
    version, state, rest = generator.getstate()
    twister = _twister(state)
    picks, used = _picks(twister, len(values))
    twister = _twister(state)
    twister.random_raw(used, output=False)
    after = twister.state["state"]
    generator.setstate((version, (*after["key"].tolist(), int(after["pos"])), rest))
    return _exchanged(values, picks)


def _twister(state: tuple[int, ...]) -> np.random.MT19937:
    """The same generator in numpy."""
    twister = np.random.MT19937(0)
    key = np.array(state[:_WORDS], dtype=np.uint32)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": state[_WORDS]}}
    return twister


def _picks(twister: np.random.MT19937, count: int) -> tuple[Integers, int]:
    """For each place from the last down to 1, the place 0 to itself with which it is exchanged.

    A pick for place i takes as many bits as i + 1 has, and another word while they exceed i.

    Returns:
        The picks `[count - 1]`, and how many 32-bit words of the generator they took.
    """
    words = np.zeros(0, dtype=np.int64)
    pieces, used, place = [], 0, count - 1
    while place >= 1:
        bits = (place + 1).bit_length()
        wanted = place - max(1, 2 ** (bits - 1) - 1) + 1
        looked_at = wanted + wanted // 2 + 64  # three of four candidates are accepted
        while len(words) < looked_at:
            more = twister.random_raw(2 * count).astype(np.int64)
            words = np.concatenate([words, more])
        candidates = words[:looked_at] >> (32 - bits)
        accepted = np.flatnonzero(_accepted(candidates, place))[:wanted]
        consumed = int(accepted[-1]) + 1 if len(accepted) == wanted else len(candidates)
        pieces.append(candidates[accepted])
        words, used, place = words[consumed:], used + consumed, place - len(accepted)
    return np.concatenate(pieces), used


def _accepted(candidates: Integers, place: int) -> npt.NDArray[np.bool_]:
    """Which candidates become picks, where `place` sinks by one with every pick.

    Whether one is accepted depends only on those before it. So at least the first one that was wrong is
    put right in each pass, and what no pass changes is right. It takes about ten passes.
    """
    accepted = candidates <= place
    while True:
        again = candidates <= place - (np.cumsum(accepted) - accepted)
        if np.array_equal(again, accepted):
            return accepted
        accepted = again


def _exchanged(values: Integers, picks: Integers) -> Integers:
    """The values after place n - 1, n - 2, ... 1 was exchanged with its pick, without a loop over them.

    The value that stands at place i when its turn comes was put there by the lowest place above i that
    had picked i, and was that place's own value at its turn; so chains of such places lead to the value.
    """
    count = len(values)
    places = np.arange(count, dtype=np.int64)
    picked = np.concatenate([[0], picks[::-1]])  # by place; 0 takes itself at the end
    # In the order of what was picked, and then of who picked it.
    bits = count.bit_length()
    keys = (picked << bits) | places
    keys.sort()
    what, who = keys >> bits, keys & (2**bits - 1)
    same = what[1:] == what[:-1]
    # The next place above each that picked the same; -1 for none.
    later = np.full(count, -1, dtype=np.int64)
    later[who[:-1][same]] = who[1:][same]
    # The lowest place above each that picked the place itself; -1 for none.
    first = np.full(count, -1, dtype=np.int64)
    starts = np.concatenate([[True], ~same])
    first[what[starts]] = who[starts]
    own = np.flatnonzero(picked == places)
    first[own] = later[own]
    origin = np.where(first < 0, places, first)
    moving = np.flatnonzero(first >= 0)
    while len(moving):
        further = origin[origin[moving]]
        still = further != origin[moving]
        moving, further = moving[still], further[still]
        origin[moving] = further
    source = np.where(later >= 0, origin[later], picked)
    source[own] = origin[own]
    return values[source]
