"""The shuffle of Python's `random.Random` with arrays: the same state gives the same order.

Graphs are drawn with Python's generator, so that they stay the same as those of networkx. For 500,000
values its shuffle takes 0.19 s, which is more than all other steps of drawing a graph together.
`_shuffle.c` does the same where there was a C compiler, and arrays do it elsewhere.
"""

from __future__ import annotations

import ctypes
import random
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_FEW = 4096
"""Values up to which Python's own shuffle is faster."""

_WORDS = 624
"""32-bit words in the state of the Mersenne twister."""


def shuffled(generator: random.Random, values: Integers) -> Integers:
    """The order of `values` `[n]`, n < 2^32, after `generator.shuffle`.

    The generator has the same state afterwards as after its own shuffle.
    """
    if len(values) <= _FEW:
        order = values.tolist()
        generator.shuffle(order)
        return np.array(order, dtype=np.int64)
    version, state, rest = generator.getstate()
    build = _build()
    if build is not None:
        order, words = values.copy(), np.array(state[:_WORDS], dtype=np.uint32)
        place = ctypes.c_int64(state[_WORDS])
        build.shuffle(words.ctypes.data, ctypes.byref(place), len(order), order.ctypes.data)
        generator.setstate((version, (*words.tolist(), place.value), rest))
        return order
    twister = _twister(state)
    picks, used = _picks(twister, len(values))
    twister = _twister(state)
    twister.random_raw(used, output=False)
    after = twister.state["state"]
    generator.setstate((version, (*after["key"].tolist(), int(after["pos"])), rest))
    return _exchanged(values, picks)


def is_compiled() -> bool:
    """Whether long shuffles are done in C."""
    return _build() is not None


@cache
def _build() -> ctypes.CDLL | None:
    """The compiled shuffle, if it was built."""
    try:
        library = ctypes.CDLL(str(Path(__file__).parent / "_shuffle_any.so"))
        pointer = ctypes.c_void_p
        library.shuffle.argtypes = (pointer, pointer, ctypes.c_int64, pointer)
        library.shuffle.restype = None
    except (OSError, AttributeError):
        return None
    return library


def _twister(state: tuple[int, ...]) -> np.random.MT19937:
    """The generator with this state in numpy."""
    twister = np.random.MT19937(0)
    key = np.array(state[:_WORDS], dtype=np.uint32)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": state[_WORDS]}}
    return twister


def _picks(twister: np.random.MT19937, count: int) -> tuple[Integers, int]:
    """For each place i from the last down to 1, the place from 0 to i with which it is exchanged.

    A pick for place i is made of as many random bits as the number i + 1 has. While it exceeds i, the
    next word is taken.

    Returns:
        The picks `[count - 1]`, and the number of 32-bit words of the generator that were used.
    """
    words = np.zeros(0, dtype=np.int64)
    pieces, used, place = [], 0, count - 1
    while place >= 1:
        bits = (place + 1).bit_length()
        wanted = place - max(1, 2 ** (bits - 1) - 1) + 1
        looked_at = wanted + wanted // 2 + 64  # on average three of four candidates are accepted
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
    """Which candidates become picks, where `place` decreases by one with every pick.

    Whether a candidate is accepted depends only on the candidates before it. So each pass corrects at
    least the first wrong decision, and the result is right when a pass changes nothing. This takes about
    ten passes.
    """
    accepted = candidates <= place
    while True:
        again = candidates <= place - (np.cumsum(accepted) - accepted)
        if np.array_equal(again, accepted):
            return accepted
        accepted = again


def _exchanged(values: Integers, picks: Integers) -> Integers:
    """The values after the places n - 1, n - 2, ... 1 were exchanged with their picks, without a loop.

    Consider the value at place i at the time when place i is exchanged. The lowest place above i that had
    picked i has put it there, and at its own exchange that place held this value. So a chain of such
    places leads to the value's original place.
    """
    count = len(values)
    places = np.arange(count, dtype=np.int64)
    picked = np.concatenate([[0], picks[::-1]])  # by place; 0 takes itself at the end
    # The keys are sorted by the picked place, and then by the place that picked it.
    bits = count.bit_length()
    keys = (picked << bits) | places
    keys.sort()
    what, who = keys >> bits, keys & (2**bits - 1)
    same = what[1:] == what[:-1]
    # For each place, the next higher place that picked the same place; -1 for none.
    later = np.full(count, -1, dtype=np.int64)
    later[who[:-1][same]] = who[1:][same]
    # For each place, the lowest place that picked it; -1 for none.
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
