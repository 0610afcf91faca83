"""How many cores and how much memory of its machine this process may use.

A batch system or a container gives a process less than the machine has, by affinity and control groups.
The Linux kernel's documentation describes the limits of control groups: "Control Group v2" (`cpu.max`,
`memory.max`), and for version 1 "CFS Bandwidth Control" and "Memory Resource Controller".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # macOS binds no processes


def core_limit(groups: Path = _GROUPS, mine: Path = _MINE) -> int:
    """Number of cores that the control groups of this process allow; 0 if there is no limit.

    A fraction of a core counts as a whole core.

    Args:
        groups: where control groups are mounted.
        mine: the file that names the groups of this process.
    """
    shares = []
    for folder in _folders(groups, mine, "cpu"):
        quota, period = (*_words(folder / "cpu.max"), "max", "100000")[:2]
        if quota == "max":
            quota = _first(folder / "cpu.cfs_quota_us")
            period = _first(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            shares.append(int(quota) / int(period))
    return max(1, math.ceil(min(shares))) if shares else 0


def memory(groups: Path = _GROUPS, mine: Path = _MINE) -> int:
    """Bytes of memory that this process may use: the machine's memory, or a lower limit of its groups.

    Args:
        groups: where control groups are mounted.
        mine: the file that names the groups of this process.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _folders(groups, mine, "memory"):
        texts = (_first(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))
        limits += [int(text) for text in texts if text.isdecimal()]
    return min(limits)


def _folders(groups: Path, mine: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all groups above it, in version 2 and version 1.

    A container may see its own group as the root, so folders that do not exist are skipped.
    """
    try:
        lines = mine.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = groups / controller if controllers else groups
        folder = top / inner.lstrip("/")
        for each in (folder, *folder.parents):
            if each.is_dir():
                yield each
            if each == top:
                break


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []


def _first(file: Path) -> str:
    return next(iter(_words(file)), "")
