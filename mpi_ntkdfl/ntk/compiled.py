"""The compiled evolution: finds the builds of `_evolve.c` and calls them.

`setup.py` makes one build per type of number and instruction set if there is a C compiler. Nothing is
compiled later. A build is loaded when it is first used, and then compared once with the tensor version.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from mpi_ntkdfl.ntk import scheme
from mpi_ntkdfl.ntk.evolve_batch import evolve_batch
from mpi_ntkdfl.runtime.builds import NOT_BUILT, Loaded, able

FOLDER = Path(__file__).parent
"""The folder of the builds."""

_DONE, _NOT_FINITE, _COLLAPSED, _TOO_MANY = range(4)
_STAGES, _ENDS, _POWERS = len(scheme.STAGES), scheme.ENDS, len(scheme.LEFT_SUM)


class _Scheme(ctypes.Structure):
    """`struct scheme` of `_evolve/layout.h`."""

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
    """`struct problem` of `_evolve/layout.h`."""

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
    """The constants of `scheme` as a structure of C."""
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


class Build(Loaded):
    """A build of the evolution."""

    def workspace(self, samples: int, outputs: int) -> int:
        """Size of the workspace for one client, in numbers of the build's type."""
        return int(self.library.evolve_workspace(samples, outputs))

    def evolve(
        self,
        kernel: torch.Tensor,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        lr: float,
        taus: Sequence[int],
        tolerance: float,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Evolves one client's outputs under the cross-entropy loss; arguments as in `evolve.evolve`.

        Returns:
            S(tau) and f(tau * lr), `[tau, sample, output]` each; the number of kernel products computed.

        Raises:
            ArithmeticError: as in `evolve.evolve`.
        """
        samples, classes = outputs.shape
        inner_bound, outer_bound = scheme.bounds(tolerance, outputs.dtype)
        arrays = [array.contiguous() for array in (kernel, outputs, targets)]
        arrays.append(scheme.start(samples, outputs).contiguous())
        marks = torch.tensor(taus, dtype=torch.int64)
        sums_at = outputs.new_empty(len(taus), samples, classes)
        outputs_at = torch.empty_like(sums_at)
        workspace = outputs.new_empty(self.workspace(samples, classes))
        problem = _Problem(
            samples,
            classes,
            len(taus),
            *(array.data_ptr() for array in (*arrays, marks)),
            lr / samples,
            inner_bound,
            outer_bound,
            *(array.data_ptr() for array in (workspace, sums_at, outputs_at)),
        )
        status = self.library.evolve_client(ctypes.byref(_scheme()), ctypes.byref(problem))
        if status == _NOT_FINITE:
            raise ArithmeticError("a product with the kernel is not finite")
        if status == _COLLAPSED:
            raise ArithmeticError(scheme.collapsed(problem.reached))
        if status == _TOO_MANY:
            raise ArithmeticError(scheme.too_many(problem.reached))
        if not (sums_at.isfinite().all() and outputs_at.isfinite().all()):
            raise ArithmeticError("the evolution is not finite")
        return sums_at, outputs_at, -(-problem.products // classes)


def builds(dtype: torch.dtype) -> list[Build]:
    """All builds for a type of number that run on this processor, those with the widest vectors first."""
    stem = FOLDER / f"_evolve_{str(dtype).removeprefix('torch.')}"
    return [Build(*pair) for pair in able(stem, _declare)]


def _declare(library: ctypes.CDLL) -> bool:
    """Declares the functions of a build; returns whether it has this version's structures."""
    library.evolve_layout.restype = library.evolve_workspace.restype = ctypes.c_int64
    library.evolve_workspace.argtypes = (ctypes.c_int64, ctypes.c_int64)
    library.evolve_client.argtypes = (ctypes.POINTER(_Scheme), ctypes.POINTER(_Problem))
    layout = 1000 * ctypes.sizeof(_Scheme) + ctypes.sizeof(_Problem)
    return bool(library.evolve_layout() == layout)


@cache
def find(dtype: torch.dtype) -> Build | str:
    """The build to use for a type of number, or the reason why there is none.

    The first call compares the build with the tensor version on a small problem, which takes about 30 ms.
    """
    if not any(FOLDER.glob("_evolve_*.so")):
        return NOT_BUILT
    usable = builds(dtype)
    if not usable:
        return f"no build in {FOLDER} is of this version and runs on this processor"
    try:
        missed = _deviation(usable[0], dtype)
    except ArithmeticError as error:
        return f"the build for {usable[0].level} fails here: {error}"
    if not missed <= 10 * _CHECKED:
        return f"the build for {usable[0].level} is wrong here: {missed:.0e} off in a small problem"
    return usable[0]


_CHECKED = 1e-4
"""Tolerance of the small problem's evolution."""


def _deviation(build: Build, dtype: torch.dtype) -> float:
    """Relative difference between the left sums of a build and those of the tensor version."""
    samples, classes = 70, 3
    rows = scheme.start(samples, torch.empty(0, dtype=dtype))
    kernel, outputs = samples * (rows.T @ rows), rows[:classes].T.contiguous()
    targets = torch.eye(classes, dtype=dtype)[torch.arange(samples) % classes]
    sums, *_ = build.evolve(kernel, outputs, targets, 0.1, (2, 4), _CHECKED)
    expected = evolve_batch(
        kernel[None], outputs[None], targets[None], [samples], 0.1, (2, 4), _CHECKED
    ).residual_sums[0]
    return float((sums - expected).norm() / expected.norm())
