"""Which program a rank runs: the package's sources, its commit, the libraries, the processor, the cores.

The ranks of a job compare this before they read anything. If the ranks run different packages, they
exchange messages that mean different things, or wait for each other for ever. Two versions of a
library, or two kinds of processor, round the same numbers differently.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mpi_ntkdfl.runtime import limits

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of this package."""

_SOURCES = (".py", ".c", ".h", ".csv", ".yaml")
"""Suffixes of the files of the package that decide a result."""

_LIBRARIES = ("torch", "numpy", "mpi4py", "h5py")

# Extensions of the instruction set for which the mathematical libraries have special code.
_EXTENSIONS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_tile"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("asimd", "asimddp", "sve", "sve2", "i8mm", "bf16"),
)

Identity = dict[str, str]
"""What one rank runs, by name: plain text only, so that every version of the package can read it."""

_OF_THE_RANK = ("sources", "cores", "core limit")
"""Names in it that are compared in another way, or that may differ between ranks."""


@cache
def own() -> Identity:
    """What this process runs: `sources`, `python`, libraries, `processor`, `compiled`, and its cores.

    `cores` is a mask in hexadecimal digits: bit c is set if the process may run on core c. `core limit`
    is the number of cores that its control groups allow, 0 for no limit.
    """
    mask = sum(1 << core for core in limits.usable_cores())
    return {
        "sources": sources(PACKAGE),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "processor": processor(),
        "compiled": compiled(PACKAGE),
        "cores": f"{mask:x}",
        "core limit": str(limits.core_limit()),
    }


def sources(package: Path) -> str:
    """SHA-256 over names and contents of the source files below `package`, as hexadecimal digits."""
    digest = hashlib.sha256()
    files: dict[str, Path] = {}
    for folder, inner, names in os.walk(package):
        if Path(folder) == package and "jobs" in inner:
            # It holds batch scripts. In a clone it is a link, in an installation it is a folder.
            inner.remove("jobs")
        paths = [Path(folder, name) for name in names if name.endswith(_SOURCES)]
        files |= {path.relative_to(package).as_posix(): path for path in paths}
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def compiled(package: Path) -> str:
    """First digits of the SHA-256 of each compiled file in `package`.

    The hash of the sources is not enough, because a file may have been compiled from other sources.
    """
    files = sorted(path for end in ("so", "pyd") for path in package.rglob(f"*.{end}"))
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files) or "none"


def processor(described: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture, maker and extensions of the instruction set of this processor.

    Args:
        described: the kernel's description of the processors; without it the result is only the
            architecture.
    """
    try:
        lines = described.read_text().splitlines()
    except OSError:
        lines = []
    # In reversed order, so that the entries of the first processor remain.
    entries = {key.strip(): value for key, _, value in (s.partition(":") for s in reversed(lines))}
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    maker = (entries.get("vendor_id") or entries.get("CPU implementer") or "").strip()
    words = (platform.machine(), maker, *(name for name in _EXTENSIONS if name in flags))
    return " ".join(word for word in words if word)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


# ------------------------------------------------------------------------------------ the comparison


def refusal(hosts: Sequence[str], identities: Sequence[Identity | None]) -> str | None:
    """Why these ranks cannot work together, or None.

    Args:
        hosts: the host name of every rank.
        identities: the identity of every rank; None for a rank whose package is too old to send one.
    """
    packages = [f"sources {it['sources'][:12]}" if it else "an older version" for it in identities]
    who = _by_value(hosts, packages)
    if len(who) == 1:
        return None
    listed = "; ".join(f"{package} on {_some(names)}" for package, names in who.items())
    return (
        f"every rank must run the same mpi_ntkdfl package, but the package differs: {listed}; install "
        "the same version on every host, or use an installation on a file system that all hosts share"
    )


def warnings(hosts: Sequence[str], identities: Sequence[Identity]) -> list[str]:
    """What differs between ranks that can work together, one line each."""
    lines = []
    for name, value in versions(hosts, identities).items():
        if not isinstance(value, str):
            listed = "; ".join(f"{each} on {_some(names)}" for each, names in value.items())
            lines.append(f"{name} differs, so the last bits of the result may differ: {listed}")
    return lines


def versions(
    hosts: Sequence[str], identities: Sequence[Identity]
) -> dict[str, str | dict[str, list[str]]]:
    """Python, libraries and processor by name: one value, or the hosts of each value if it differs."""
    by_name: dict[str, str | dict[str, list[str]]] = {}
    for name in identities[0]:
        if name not in _OF_THE_RANK:
            who = _by_value(hosts, [identity[name] for identity in identities])
            by_name[name] = next(iter(who)) if len(who) == 1 else who
    return by_name


def cores(hosts: Sequence[str], identities: Sequence[Identity]) -> dict[str, int]:
    """How many cores the ranks of each host may use together.

    These are the cores that at least one rank may run on, as far as control groups allow so many. Ranks
    of one host share its control group, so the largest limit of them counts.
    """
    usable: dict[str, int] = {}
    for host in dict.fromkeys(hosts):
        own_ranks = [identities[rank] for rank, name in enumerate(hosts) if name == host]
        mask = 0
        for identity in own_ranks:
            mask |= int(identity.get("cores", "0"), 16)
        allowed = [int(identity.get("core limit", "0")) for identity in own_ranks]
        limit = max(allowed) if all(allowed) else mask.bit_count()
        usable[host] = min(mask.bit_count(), limit)
    return usable


def _by_value(hosts: Sequence[str], values: Sequence[str]) -> dict[str, list[str]]:
    """The hosts of each value; each host is listed once."""
    by_value: dict[str, dict[str, None]] = {}
    for host, value in zip(hosts, values, strict=True):
        by_value.setdefault(value, {})[host] = None
    return {value: list(names) for value, names in by_value.items()}


def _some(names: Sequence[str], most: int = 4) -> str:
    """`n1, n2`, or only the first few names if there are many."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


# ------------------------------------------------------------------------------ the content of files


def of_file(path: Path) -> str:
    """SHA-256 over the bytes of a file, as hexadecimal digits.

    A file whose size, time of change and inode stay the same is read once per process.

    Raises:
        OSError: if the file cannot be read.
    """
    state = path.stat()
    return _of_file(path, state.st_size, state.st_mtime_ns, state.st_ino)


@cache
def _of_file(path: Path, size: int, changed: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------- the commit


def commit(package: Path = PACKAGE) -> str:
    """Commit of the sources of `package`: of the clone that it lies in, or from which it was installed.

    Returns:
        The commit's 40 digits; its first 12 digits and `-dirty` if files of the package differ from the
        commit of their clone; `unknown` if the package was not installed from a clone, or if git does not
        answer.
    """
    if not (package.parent / ".git").exists():
        written = package / "COMMIT"  # by setup.py
        return written.read_text().strip() if written.exists() else "unknown"
    head, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "-s", "--", ".")
    if head is None or changes is None:
        return "unknown"
    return f"{head[:12]}-dirty" if changes else head


def _git(folder: Path, *words: str) -> str | None:
    """The output of `git WORDS` in `folder`, or None if it fails.

    Variables such as GIT_DIR are removed, since they would name another repository of the user.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**variables, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
