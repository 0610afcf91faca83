"""The allocator of the C library: memory that is given back to the system has to be cleared again.

glibc takes large blocks from the system and gives them back when they are freed. Each time the kernel
clears their pages on first use. A kernel of a convolutional network spends up to a quarter of its time on
this. With higher thresholds the process keeps freed blocks and uses them again.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of parameters in glibc's malloc.h."""


def keep_memory() -> bool:
    """Lets this process keep blocks of up to 1 GiB that are freed. It is for Linux with glibc only.

    Other threads of the process are affected as well. Results are not.

    Returns:
        Whether glibc has accepted both settings; False elsewhere, where nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(
        library.mallopt(_M_MMAP_THRESHOLD, 2**30) and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )
