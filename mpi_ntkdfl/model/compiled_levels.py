"""Products of weights with inputs on levels in C, with the same bits as in tensors, and faster.

`setup.py` builds `_levels.c` if there is a C compiler. The build runs on processors with AVX-512 VNNI.
Elsewhere `levels.FixedPoint` computes the same numbers with torch.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mpi_ntkdfl.runtime.builds import NOT_BUILT

if TYPE_CHECKING:
    from mpi_ntkdfl.model.levels import Inputs

BUILD = Path(__file__).parent / "_levels_x86_64.so"
"""The compiled file."""

_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class CompiledFixedPoint:
    """`levels.FixedPoint` in C."""

    def __init__(self, build: ctypes.CDLL, matrix: torch.Tensor) -> None:
        """Rounds `matrix` `[row, feature]`, float32; the number of features must be a multiple of 4."""
        matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
        self._build, self._shape = build, matrix.shape
        self._memory = torch.empty(build.levels_bytes(*matrix.shape), dtype=torch.uint8)
        build.levels_prepare(
            *matrix.shape, matrix.data_ptr(), matrix.stride(0), self._memory.data_ptr()
        )

    def times(self, inputs: Inputs) -> torch.Tensor:
        """The product with inputs x on levels, `matrix x^T` `[row, sample]`."""
        assert not isinstance(inputs, torch.Tensor)
        rows, features = self._shape
        numbers, levels = inputs.numbers, inputs.levels
        assert numbers.stride(1) == 1
        product = torch.empty(rows, len(inputs))
        self._build.levels_times(
            *(rows, features, self._memory.data_ptr()),
            *(numbers.data_ptr(), numbers.stride(0), len(inputs)),
            *(levels.step, levels.offset),
            *(product.data_ptr(), product.stride(0)),
        )
        return product


@cache
def find() -> ctypes.CDLL | str:
    """The build, or the reason why torch computes these products instead."""
    if not BUILD.exists():
        return NOT_BUILT
    try:
        build = ctypes.CDLL(str(BUILD))
        build.levels_bytes.restype = _NUMBER
        build.levels_bytes.argtypes = (_NUMBER,) * 2
        build.levels_prepare.argtypes = (_NUMBER, _NUMBER, _ADDRESS, _NUMBER, _ADDRESS)
        build.levels_times.argtypes = (
            *(_NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER),
            *(ctypes.c_double, ctypes.c_double, _ADDRESS, _NUMBER),
        )
    except (OSError, AttributeError):
        return f"{BUILD} cannot be loaded or is of another version"
    return build if build.levels_run_here() else "the processor has no AVX-512 VNNI"
