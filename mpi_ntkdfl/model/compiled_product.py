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
    found = builds()
    if not found:
        return f"no build in {FOLDER} is of this version and runs on this processor"
    a = torch.arange(37.0)[:, None].sin() * torch.arange(300.0).cos() + 0.1
    total = torch.ones(37, 37)
    found[0].add_lower(total, a)
    if not torch.allclose(total.tril(), (a @ a.T + 1).tril(), rtol=1e-4):
        return f"the build for {found[0].level} is wrong here"
    return found[0]


def build_for(total: torch.Tensor, a: torch.Tensor) -> Build | None:
    """The build that can add `a a^T` to `total`, if there is one."""
    if a.dtype != total.dtype or a.stride(1) != 1 or total.stride(1) != 1:
        return None
    build = usable(a.device, a.dtype)
    return None if isinstance(build, str) else build


def usable(device: torch.device, dtype: torch.dtype) -> Build | str:
    """The build for products of this type on this device, or the reason why there is none."""
    if on_gpu(device) or dtype != torch.float32:
        return "the compiled version is for float32 on CPUs"
    if torch.get_num_threads() > 1:
        return "the compiled version has one thread"
    return find()


def described(device: torch.device, dtype: torch.dtype) -> str:
    """The version that serves, compiled or tensor, and its level or the reason."""
    build = usable(device, dtype)
    return f"tensor: {build}" if isinstance(build, str) else f"compiled: {build.level}"
