"""Symmetric products in C: finds the builds of `_symmetric.c` and calls them.

They compute little more than the lower triangle and pack every number once. With several threads, the
products of torch are used, because the compiled one has one thread.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from mpi_ntkdfl.runtime.builds import NOT_BUILT, Loaded, able
from mpi_ntkdfl.runtime.device import on_gpu

FOLDER = Path(__file__).parent
"""The folder of the builds."""

_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class Build(Loaded):
    """A build of the symmetric product."""

    def add_lower(self, total: torch.Tensor, a: torch.Tensor) -> None:
        """Adds `a a^T` of `a [n, k]` to the lower triangle of `total [n, n]`, both float32."""
        workspace = a.new_empty(self.library.symmetric_workspace(len(a)))
        self.library.symmetric_add(
            *(*a.shape, a.data_ptr(), a.stride(0)),
            *(total.data_ptr(), total.stride(0), workspace.data_ptr()),
        )


def builds() -> list[Build]:
    """All builds that run on this processor, those with the widest vectors first."""
    return [Build(*pair) for pair in able(FOLDER / "_symmetric", _declare)]


def _declare(library: ctypes.CDLL) -> bool:
    """Declares the functions of a build."""
    library.symmetric_workspace.restype = _NUMBER
    library.symmetric_workspace.argtypes = (_NUMBER,)
    library.symmetric_add.restype = None
    library.symmetric_add.argtypes = (
        *(_NUMBER, _NUMBER, _ADDRESS, _NUMBER),
        *(_ADDRESS, _NUMBER, _ADDRESS),
    )
    return True


@cache
def find() -> Build | str:
    """The build to use, or the reason why there is none.

    The first call compares the build with torch on a small problem.
    """
    if not any(FOLDER.glob("_symmetric_*.so")):
        return NOT_BUILT
    usable = builds()
    if not usable:
        return f"no build in {FOLDER} is of this version and runs on this processor"
    a = torch.arange(37.0)[:, None].sin() * torch.arange(300.0).cos() + 0.1
    total = torch.ones(37, 37)
    usable[0].add_lower(total, a)
    if not torch.allclose(total.tril(), (a @ a.T + 1).tril(), rtol=1e-4):
        return f"the build for {usable[0].level} is wrong here"
    return usable[0]


def build_for(total: torch.Tensor, a: torch.Tensor) -> Build | None:
    """The build that can add `a a^T` to `total`, if there is one."""
    if on_gpu(a.device) or {a.dtype, total.dtype} != {torch.float32}:
        return None
    if torch.get_num_threads() > 1 or a.stride(1) != 1 or total.stride(1) != 1:
        return None
    build = find()
    return None if isinstance(build, str) else build
