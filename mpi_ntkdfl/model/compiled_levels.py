"""Products of weights with inputs on levels in C, with the same bits as in tensors, and faster.

`setup.py` builds `_levels.c` if there is a C compiler. The build runs on processors with AVX-512 VNNI.
Elsewhere `levels.FixedPoint` computes the same numbers with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mpi_ntkdfl.runtime.builds import NOT_BUILT

if TYPE_CHECKING:
    from mpi_ntkdfl.model.levels import Inputs

BUILD = Path(__file__).parent / "_levels_x86_64.so"
"""The compiled file."""

MOST_OUTPUTS, MOST_HIDDEN = 16, 128
"""Limits of the second layer. Its sums fit into one vector, and torch adds so few terms in this order."""

_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _Second(ctypes.Structure):
    """`struct second` of `_levels.c`."""

    _fields_ = (("outputs", _NUMBER), *((name, _ADDRESS) for name in ("bias", "weights", "shift")))


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
        return self._compute(inputs, self._shape[0], None)

    def second_layer(
        self, first_bias: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Callable[[Inputs], torch.Tensor]:
        """A function from inputs x on levels to `weight relu(matrix x^T + first_bias) + bias`.

        Args:
            first_bias: `[row]`.
            weight: `[output, row]`, with at most `MOST_OUTPUTS` outputs and `MOST_HIDDEN` rows.
            bias: `[output]`.

        Returns:
            A function from inputs to outputs `[output, sample]`.
        """
        outputs, rows = weight.shape
        padded = torch.zeros(rows + 1, MOST_OUTPUTS)
        padded[:-1, :outputs], padded[-1, :outputs] = weight.T, bias
        # The function keeps the arrays.
        arrays = first_bias.contiguous(), padded, padded[-1]
        second = _Second(outputs, *(array.data_ptr() for array in arrays))

        def function(inputs: Inputs, _kept: object = arrays) -> torch.Tensor:
            return self._compute(inputs, outputs, second)

        return function

    def _compute(self, inputs: Inputs, rows: int, second: _Second | None) -> torch.Tensor:
        assert not isinstance(inputs, torch.Tensor)
        numbers, levels = inputs.numbers, inputs.levels
        assert numbers.stride(1) == 1
        result = torch.empty(rows, len(inputs))
        self._build.levels_compute(
            *(*self._shape, self._memory.data_ptr()),
            *(numbers.data_ptr(), numbers.stride(0), len(inputs)),
            *(levels.step, levels.offset, result.data_ptr(), result.stride(0)),
            None if second is None else ctypes.byref(second),
        )
        return result


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
        build.levels_compute.argtypes = (
            *(_NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER),
            *(ctypes.c_double, ctypes.c_double, _ADDRESS, _NUMBER, ctypes.POINTER(_Second)),
        )
        build.levels_layout.restype = _NUMBER
        same = build.levels_layout() == ctypes.sizeof(_Second)
    except (OSError, AttributeError):
        same = False
    if not same:
        return f"{BUILD} cannot be loaded or is of another version"
    return build if build.levels_run_here() else "the processor has no AVX-512 VNNI"
