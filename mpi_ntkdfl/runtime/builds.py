"""Files that `setup.py` compiles from C if there is a compiler: which of them this processor can run.

There is one file per instruction set, named `STEM_LEVEL.so`. Nothing is compiled later.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NOT_BUILT = "it was not built: there was no C compiler when mpi_ntkdfl was installed"


LEVELS = (4, 3)
"""The levels of x86-64 with builds, the widest first; lower ones have no fused operations."""


@dataclass(frozen=True)
class Loaded:
    """A loaded build that this processor can run.

    Attributes:
        level: the instructions that it uses, such as "x86-64-v3" or "generic".
        library: the loaded library.
    """

    level: str
    library: ctypes.CDLL


def able(stem: Path, declare: Callable[[ctypes.CDLL], bool]) -> list[tuple[str, ctypes.CDLL]]:
    """All builds that run on this processor with their instruction sets, the widest vectors first.

    Args:
        stem: folder and beginning of the files' names.
        declare: declares the functions of a build, and says whether it belongs to this version of the
            package. It may raise `AttributeError` for a build that does not.
    """

    def load(level: str) -> ctypes.CDLL | None:
        try:
            library = ctypes.CDLL(f"{stem}_{level}.so")
            return library if declare(library) and library.build_runs else None
        except (OSError, AttributeError):
            return None

    if platform.machine() not in ("x86_64", "AMD64"):
        library = load("generic")
        return [("generic", library)] if library else []
    # The narrowest build says what else the processor can run.
    least = load(f"v{LEVELS[-1]}")
    if least is None:
        return []
    loaded = (
        (f"x86-64-v{level}", load(f"v{level}")) for level in LEVELS if least.build_runs(level)
    )
    return [(name, library) for name, library in loaded if library]
