"""The evolution compiled for the processor: finds the builds of `_evolve.c` and calls them.

`setup.py` makes one build per type of number and instruction set, where there is a compiler. Nothing is
compiled later. A build is loaded at its first use and compared with the tensor version once.
"""

from __future__ import annotations

import ctypes
import math
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from mpi_ntkdfl.ntk import scheme
from mpi_ntkdfl.ntk.evolve_batch import evolve_batch

LEVELS = (4, 3, 2)
"""Levels of x86-64 that there may be builds for, the widest first."""

_DONE, _NOT_FINITE, _COLLAPSED, _TOO_MANY = range(4)
_STAGES, _ENDS, _POWERS = len(scheme.STAGES), scheme.ENDS, len(scheme.LEFT_SUM)
_KINDS = {torch.float32: ("float32", ctypes.c_float), torch.float64: ("float64", ctypes.c_double)}


class _Scheme(ctypes.Structure):
    """`struct scheme` of `_evolve.c`."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("mean_over_end", "stable", "safety", "shrink")),
        *((name, ctypes.c_double) for name in ("grow", "first", "shift", "longest_shift")),
        ("inner_order", ctypes.c_double),
        ("outer_orders", ctypes.c_double * _ENDS),
        ("stages", ctypes.c_double * _STAGES * _STAGES),
        ("error", ctypes.c_double * (_STAGES + 1)),
        ("left_sum", ctypes.c_double * _POWERS * _POWERS),
        ("power_sums", ctypes.c_double * (_POWERS + 1) * _POWERS),
        *((name, ctypes.c_double) for name in ("least_in_basis", "least_in_factor")),
        *((name, ctypes.c_int64) for name in ("rank", "passes", "most_trials")),
    )


class _Problem(ctypes.Structure):
    """`struct problem` of `_evolve.c`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("samples", "outputs", "marks")),
        *((name, ctypes.c_void_p) for name in ("kernel", "initial", "targets", "start", "taus")),
        *((name, ctypes.c_double) for name in ("scale", "inner_bound", "outer_bound")),
        *((name, ctypes.c_void_p) for name in ("workspace", "sums_at", "outputs_at")),
        *((name, ctypes.c_int64) for name in ("products", "trials")),
        ("reached", ctypes.c_double),
    )


@cache
def _scheme() -> _Scheme:
    """The numbers of `scheme`, for C."""
    rows = tuple((ctypes.c_double * _STAGES)(*row) for row in scheme.STAGES)
    return _Scheme(
        mean_over_end=scheme.MEAN_OVER_END,
        stable=scheme.STABLE,
        safety=scheme.SAFETY,
        shrink=scheme.SHRINK,
        grow=scheme.GROW,
        first=scheme.FIRST,
        shift=scheme.SHIFT,
        longest_shift=scheme.LONGEST_SHIFT,
        inner_order=scheme.INNER_ORDER,
        outer_orders=scheme.OUTER_ORDERS,
        stages=rows,
        error=scheme.ERROR,
        left_sum=tuple((ctypes.c_double * _POWERS)(*row) for row in scheme.LEFT_SUM),
        power_sums=tuple((ctypes.c_double * (_POWERS + 1))(*row) for row in scheme.POWER_SUMS),
        least_in_basis=scheme.LEAST_IN_BASIS,
        least_in_factor=scheme.LEAST_IN_FACTOR,
        rank=scheme.RANK,
        passes=scheme.PASSES,
        most_trials=scheme.MOST_TRIALS,
    )
