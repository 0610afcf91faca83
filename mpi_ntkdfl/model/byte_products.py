"""Whether matrices of bytes are multiplied as bytes: only if this is exact and faster.

`torch._int_mm` is exact on many processors, but it is fast only on processors with instructions for
products of bytes (VNNI). On processors with AVX2 and without VNNI (Zen 3, Haswell to Skylake) it takes
25 times as long as the product of the same matrices in float32. So it is not enough that the function
works: its time counts as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from mpi_ntkdfl.model.levels import multiplies_bytes
from mpi_ntkdfl.runtime.errors import InputError

_SLOWEST = 2.0
"""Bytes are not used if their products take longer than those of floats by more than this factor. The
measured factors are 0.3 to 0.5 with VNNI and 25 without, so noise in the measurement cannot decide."""


@dataclass(frozen=True)
class Choice:
    """The choice between two ways of computing, and its reason.

    Attributes:
        taken: whether the faster way is taken.
        reason: one sentence for `doctor`, `check` and the record.
    """

    taken: bool
    reason: str

    def __str__(self) -> str:
        return f"{'on' if self.taken else 'off'}: {self.reason}"


def choose(wanted: str) -> Choice:
    """Decides for this process.

    Args:
        wanted: `compute.byte_products`: auto, on or off.

    Raises:
        InputError: if `on` is wanted and the products are not exact on this processor.
    """
    if wanted == "off":
        return Choice(False, "compute.byte_products is off")
    if wanted == "on":
        if not multiplies_bytes():
            raise InputError(
                "compute.byte_products=on needs exact products of bytes, but torch has none on this "
                "processor; use auto or off"
            )
        return Choice(True, "compute.byte_products is on")
    return measured()


@cache
def measured() -> Choice:
    """What `auto` chooses on this processor; takes 10 to 20 ms at the first call."""
    if not has_vnni():
        return Choice(False, "the processor has no instructions for products of bytes (VNNI)")
    if not multiplies_bytes():
        return Choice(False, "torch has no exact products of bytes on this processor")
    ratio = time_ratio()
    if ratio > _SLOWEST:
        return Choice(False, f"products of bytes take {ratio:.0f} times as long as those of floats")
    return Choice(True, "the processor multiplies bytes (VNNI), exactly and faster than floats")


def has_vnni() -> bool:
    """Whether the processor has VNNI instructions, according to torch or, if it cannot say, to Linux."""
    ask_torch: Callable[[], bool] | None = getattr(torch.cpu, "_is_vnni_supported", None)
    if ask_torch is not None:
        return bool(ask_torch())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def time_ratio() -> float:
    """Time of a product of bytes divided by the time of the same product of floats.

    Each time is the best of five tries.
    """
    numbers = (torch.arange(256 * 784) * 7919 % 256 - 128).view(256, 784)
    small, real = numbers.to(torch.int8), numbers.float()
    return _best(lambda: torch._int_mm(small, small.T)) / _best(lambda: real @ real.T)


def _best(task: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)
