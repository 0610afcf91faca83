"""Keyed randomness: a generator depends only on (run seed, purpose, keys), not on the caller or the time.

No generator is shared and none is global. So the partition, a client's starting weights or the graph of
round 17 have the same values on any rank, in any order of draws, for any number of ranks.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Returns a fresh generator for one purpose.

    Args:
        seed: the run's seed, >= 0.
        purpose: what the numbers are for, such as `"partition"`; different purposes never share a
            stream, even under equal keys.
        keys: non-negative integers that tell apart draws of one purpose, such as client and round.
    """
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, word, *keys])))
