"""Local steps by SGD in C: finds the builds of `_training.c` and calls them, one client at a time.

`training.py` explains the two forms of the steps, and takes the same steps in tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from mpi_ntkdfl.model.training import Sgd
from mpi_ntkdfl.runtime.builds import NOT_BUILT, Loaded, able

FOLDER = Path(__file__).parent
"""The folder of the builds."""


class _Layer(ctypes.Structure):
    """`struct layer` of `_training.c`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("inputs", "width", "padded")),
        ("weights", ctypes.c_void_p),
    )


class _Round(ctypes.Structure):
    """`struct round` of `_training.c`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("samples", "batch", "epochs", "classes")),
        *((name, ctypes.c_void_p) for name in ("order", "labels", "shift")),
        *((name, ctypes.c_double) for name in ("lr", "momentum", "decay")),
        *((name, ctypes.c_int64) for name in ("width", "padded", "depth")),
        ("rows", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("start", "first")),
        ("scale", ctypes.c_double),
        ("layers", ctypes.c_int64),
        ("upper", ctypes.POINTER(_Layer)),
        ("workspace", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Steps:
    """The steps of one client in one round.

    Attributes:
        widths: of the network.
        order: orders of the samples, `[epoch, sample]`.
        batch: samples per step.
        labels: `[sample]` int64.
        shift: what is added to the outputs in the loss, `[class]`; None for nothing.
        sgd: the descent.
    """

    widths: tuple[int, ...]
    order: np.ndarray
    batch: int
    labels: torch.Tensor
    shift: torch.Tensor | None
    sgd: Sgd


class Build(Loaded):
    """A build of the local steps."""

    def train(
        self,
        steps: Steps,
        rows: torch.Tensor,
        first: torch.Tensor,
        upper: Sequence[torch.Tensor],
        start: torch.Tensor | None = None,
    ) -> float:
        """Takes the steps. All arrays are contiguous in rows, in float32, and padded (batched.py).

        Args:
            steps: the steps.
            rows: inputs with their column of ones `[sample, in]`, or in the dual form the Gram matrix
                `[sample, sample]`.
            first: the weights `[in, out]` of the first layer, or A `[sample, out]`; overwritten.
            upper: the matrices `[out, in]` of the layers above; overwritten.
            start: the outputs `[sample, out]` of the first layer at the start, in the dual form only.

        Returns:
            The factor of the first layer's starting weights, in the dual form.
        """
        assert all(array.is_contiguous() for array in (first, *upper)) and rows.stride(1) == 1
        order = np.ascontiguousarray(steps.order, dtype=np.int64)
        labels = steps.labels.contiguous()
        shift = None if steps.shift is None else steps.shift.contiguous()
        layers = (_Layer * len(upper))(
            *(
                _Layer(array.shape[1], width, array.shape[0], array.data_ptr())
                for array, width in zip(upper, steps.widths[2:], strict=True)
            )
        )
        problem = _Round(
            *(len(labels), steps.batch, len(order), steps.widths[-1]),
            *(order.ctypes.data, labels.data_ptr(), None if shift is None else shift.data_ptr()),
            *(steps.sgd.lr, steps.sgd.momentum, steps.sgd.weight_decay),
            *(steps.widths[1], first.shape[1], len(labels) if start is not None else len(first)),
            *(rows.data_ptr(), rows.stride(0)),
            *(None if start is None else start.data_ptr(), first.data_ptr(), 1.0),
            *(len(upper), layers, None),
        )
        workspace = rows.new_empty(self.library.training_workspace(ctypes.byref(problem)))
        problem.workspace = workspace.data_ptr()
        self.library.training_round(ctypes.byref(problem))
        return float(problem.scale)


def builds() -> list[Build]:
    """All builds that run on this processor, those with the widest vectors first."""
    return [Build(*pair) for pair in able(FOLDER / "_training", _declare)]


def _declare(library: ctypes.CDLL) -> bool:
    """Declares the functions of a build; returns whether it has this version's structures."""
    library.training_layout.restype = library.training_workspace.restype = ctypes.c_int64
    library.training_workspace.argtypes = (ctypes.POINTER(_Round),)
    library.training_round.argtypes = (ctypes.POINTER(_Round),)
    library.training_round.restype = None
    layout = 1000 * ctypes.sizeof(_Round) + ctypes.sizeof(_Layer)
    return bool(library.training_layout() == layout)


@cache
def find() -> Build | str:
    """The build to use, or the reason why there is none."""
    if not any(FOLDER.glob("_training_*.so")):
        return NOT_BUILT
    usable = builds()
    return usable[0] if usable else f"no build in {FOLDER} is of this version and runs here"
