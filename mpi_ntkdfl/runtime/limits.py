"""What this process may use of its machine: cores and memory, by affinity and control groups.

A batch system or a container gives a process less than the machine has. The limits of control groups are
described in the Linux kernel's documentation, "Control Group v2" (`cpu.max`, `memory.max`) and "CFS
Bandwidth Control" and "Memory Resource Controller" for version 1.
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
    """Cores that the control groups of this process allow, a part of one counted as one; 0: no limit.

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
    """Bytes of memory that this process may use: those of the machine, or its control groups' limit.

    Args:
        groups: where control groups are mounted.
        mine: the file that names the groups of this process.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _folders(groups, mine, "memory"):
        said = (_first(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))
        limits += [int(each) for each in said if each.isdecimal()]
    return min(limits)


def _folders(groups: Path, mine: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all groups above it, in version 2 and version 1.

    A container may see its own group as the root, so a folder that does not exist is passed over.
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
