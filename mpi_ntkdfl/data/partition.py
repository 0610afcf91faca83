"""Which client holds which training samples.

A partition depends only on its settings, the labels (or sites) and the run's seed. Several clients may
hold the same sample (dirichlet, file), and some samples may belong to no client. Every client has at
least one sample.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.config import sections
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path

_log = logging.getLogger(__name__)

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Training samples of all clients, one client after another.

    Attributes:
        offsets: [M+1] int64; client i holds `indices[offsets[i]:offsets[i + 1]]`.
        indices: [offsets[M]] int64, positions in the training set.
    """

    offsets: Indices
    indices: Indices

    def client(self, i: int) -> Indices:
        """Positions [sizes[i]] of the samples of client i in the training set."""
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    @property
    def sizes(self) -> Indices:
        """Number of samples [M] of each client."""
        return np.diff(self.offsets)


def make(
    settings: sections.Partition,
    labels: Indices,
    clients: int,
    seed: int,
    sites: Indices | None = None,
    site_names: Sequence[str] = (),
) -> Partition:
    """Divides the training samples among the clients.

    Args:
        settings: the rule and its parameters.
        labels: [n] class of each training sample.
        clients: number of clients M, >= 1.
        seed: the run's seed.
        sites: [n] site of each training sample, such as its writer, counted from 0; None for a data set
            without sites.
        site_names: names of the sites, for messages; empty if sites have numbers only.

    Raises:
        InputError: if the rule cannot be applied for that many clients, or the partition file is wrong.
    """
    match settings:
        case sections.IidPartition():
            return _iid(len(labels), clients, seed)
        case sections.DirichletPartition():
            return _dirichlet(settings, labels, clients, seed)
        case sections.ShardsPartition():
            return _shards(settings.per_client, labels, clients, seed)
        case sections.WriterPartition():
            return _by_site(
                sections.SitePartition(kind="site"), labels, clients, seed, sites, site_names
            )
        case sections.SitePartition():
            return _by_site(settings, labels, clients, seed, sites, site_names)
        case sections.FilePartition():
            return _from_file(user_path(settings.path, "partition.path"), clients, len(labels))


def _join(shares: Sequence[Indices]) -> Partition:
    offsets = np.cumsum([0, *map(len, shares)], dtype=np.int64)
    return Partition(offsets, np.concatenate(shares).astype(np.int64, copy=False))


def _iid(n: int, clients: int, seed: int) -> Partition:
    """Cuts one random permutation into shares whose sizes differ by at most one."""
    if n < clients:
        raise InputError(f"iid needs a sample per client, got {n} samples for {clients} clients")
    return _join(np.array_split(seeds.generator(seed, "partition").permutation(n), clients))


def _shards(per_client: int, labels: Indices, clients: int, seed: int) -> Partition:
    """Sorts the samples by label (stably), cuts them into shards, and gives each client `per_client`.

    The shards of a client are random.
    """
    count, n = clients * per_client, len(labels)
    if n < count:
        raise InputError(
            f"shards needs a sample per shard, got {n} samples for {clients} clients * {per_client} "
            "shards: lower clients or partition.per_client"
        )
    shards = np.array_split(np.argsort(labels, kind="stable"), count)
    deal = seeds.generator(seed, "partition").permutation(count).reshape(clients, per_client)
    return _join([np.concatenate([shards[shard] for shard in sorted(hand)]) for hand in deal])


# ---------------------------------------------------------------------------------------- dirichlet


def _dirichlet(
    settings: sections.DirichletPartition, labels: Indices, clients: int, seed: int
) -> Partition:
    """The rule of the NTK-DFL authors, in which every client draws independently.

    A client draws class proportions p ~ Dir(alpha, ..., alpha) over the classes that occur in `labels`.
    It takes floor(p_c * samples) samples of each class c without replacement, or the whole class if the
    class has fewer samples. If this gives no sample at all, the client takes one sample of the most
    likely class. So several clients can hold the same sample, and most hold a few samples less than
    `samples`. If `samples` is given, the share of client i does not depend on the number of clients. The
    classes of a client's samples are ascending.
    """
    samples = settings.samples or len(labels) // clients
    if not samples:
        raise InputError(
            f"dirichlet gives each client (training samples / clients) samples, got {len(labels)} / "
            f"{clients} < 1: set partition.samples or lower clients"
        )
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    members = np.split(order, starts[1:])
    return _join(
        [
            _draw_client(members, settings.alpha, samples, seeds.generator(seed, "partition", i))
            for i in range(clients)
        ]
    )


def _draw_client(
    members: Sequence[Indices], alpha: float, samples: int, random: np.random.Generator
) -> Indices:
    proportions = _draw_proportions(alpha, len(members), random)
    available = [len(member) for member in members]
    counts = np.minimum(np.floor(proportions * samples).astype(np.int64), available)
    if not counts.any():
        counts[np.argmax(proportions)] = 1
    # For a small alpha most counts are zero. Drawing zero samples uses no random number, but takes time.
    return np.concatenate(
        [random.choice(m, size=k, replace=False) for m, k in zip(members, counts, strict=True) if k]
    )


def _draw_proportions(
    alpha: float, count: int, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draws [count] proportions from the symmetric Dirichlet distribution.

    A Dirichlet draw is a vector of Gamma(alpha) draws divided by its sum. For a small alpha all draws can
    be below the smallest double, and the quotient would be 0 / 0. So the code draws their logarithms, by
    Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha), and subtracts the largest log(U) / alpha.
    """
    log_uniform = -random.standard_exponential(count)
    log_gamma = np.log(random.standard_gamma(alpha + 1.0, count))
    # An overflow to minus infinity is right here: the class gets the proportion 0.
    with np.errstate(over="ignore"):
        log_gamma += (log_uniform - log_uniform.max()) / alpha
    gamma = np.exp(log_gamma - log_gamma.max())
    return np.asarray(gamma / gamma.sum())


# ---------------------------------------------------------------------------------- sites and files


def _by_site(
    settings: sections.SitePartition,
    labels: Indices,
    clients: int,
    seed: int,
    sites: Indices | None,
    names: Sequence[str],
) -> Partition:
    """The clients of site 0, then those of site 1, and so on; the first `clients` of them are used.

    Raises:
        InputError: if there are no sites, a client has too few samples and is not to be dropped, or
            there are fewer clients than asked for.
    """
    if sites is None:
        raise InputError(
            "partition site needs a data set with sites (hospitals, writers, roles), got one without: "
            "use heart-disease, femnist, plays, arrays with site_train, or another partition"
        )
    count = int(sites.max(initial=-1)) + 1
    order = np.argsort(sites, kind="stable")
    bounds = np.searchsorted(sites[order], np.arange(count + 1))
    shares: list[Indices] = []
    dropped = 0
    for site in range(count):
        own = order[bounds[site] : bounds[site + 1]].astype(np.int64)
        called = names[site] if names else str(site)
        kept = _clients_of_site(settings, own, labels, seed, site, called)
        dropped += settings.per_site - len(kept)
        shares += kept
    if clients > len(shares):
        left_out = f" ({dropped} of too few samples are left out)" if dropped else ""
        raise InputError(
            f"partition site gives {count} sites * {settings.per_site} per site = {len(shares)} clients"
            f"{left_out}, got {clients} clients: lower clients or raise partition.per_site"
        )
    if clients < len(shares):
        _log.info("partition site: the first %d of %d clients are used", clients, len(shares))
    return _join(shares[:clients])


def _clients_of_site(
    settings: sections.SitePartition,
    own: Indices,
    labels: Indices,
    seed: int,
    site: int,
    called: str,
) -> list[Indices]:
    """Samples of the clients of one site that hold enough.

    Args:
        settings: the rule.
        own: positions of the site's samples in the training set.
        labels: [n] class of each training sample.
        seed: the run's seed.
        site: number of the site, a key of its random numbers.
        called: its name.

    Raises:
        InputError: if a client holds too few samples and is not to be dropped, or the rule within the
            site cannot be applied.
    """
    least = settings.min_samples * settings.per_site
    shares: list[Indices] = []
    if len(own) >= least:
        rule = settings.within or sections.IidPartition(kind="iid")
        if settings.per_site == 1 and settings.within is None:
            shares = [own]
        else:
            own_seed = int(seeds.generator(seed, "partition site", site).integers(2**63))
            try:
                inner = make(rule, labels[own], settings.per_site, own_seed)
            except InputError as error:
                raise InputError(f"partition.within at site {called}: {error}") from error
            shares = [own[inner.client(i)] for i in range(settings.per_site)]
    enough = [share for share in shares if len(share) >= settings.min_samples]
    if len(enough) < settings.per_site and settings.too_small == "refuse":
        few = min(map(len, shares)) if shares else len(own) // settings.per_site
        raise InputError(
            f"partition site: every client needs at least {settings.min_samples} training samples, got "
            f"{few} at site {called} with its {len(own)} samples: lower partition.min_samples or "
            "partition.per_site, or set partition.too_small=drop"
        )
    return enough


def _from_file(path: Path, clients: int, n: int) -> Partition:
    """Reads `offsets [M+1]` and `indices` of any integer type from an npz file, and checks them."""
    offsets, indices = _read_npz(path)
    if len(offsets) != clients + 1:
        raise InputError(
            f"{path}: offsets must have clients + 1 = {clients + 1} entries, got {len(offsets)}: "
            f"set clients to {len(offsets) - 1} or use another file"
        )
    if offsets[0] != 0:
        raise InputError(f"{path}: offsets must start with 0, got {offsets[0]}")
    # Offsets are compared and not subtracted, because differences of unsigned integers wrap around.
    if (shrinking := offsets[1:] < offsets[:-1]).any():
        i = _first(shrinking)
        raise InputError(
            f"{path}: offsets must ascend, got {offsets[i]} then {offsets[i + 1]} at client {i}"
        )
    if offsets[-1] != len(indices):
        raise InputError(
            f"{path}: the last offset must be the number of indices, {len(indices)}, "
            f"got {offsets[-1]}"
        )
    if (empty := offsets[1:] == offsets[:-1]).any():
        raise InputError(
            f"{path}: every client needs a sample, got none for client {_first(empty)}"
        )
    if (outside := (indices < 0) | (indices >= n)).any():
        i = _first(outside)
        client = int(np.searchsorted(offsets, i, side="right")) - 1
        raise InputError(
            f"{path}: indices must be in 0..{n - 1}, the training samples, got {indices[i]} at "
            f"position {i}, client {client}: is the file for another data set?"
        )
    _warn_of_doubles(path, offsets, indices)
    return Partition(offsets.astype(np.int64), indices.astype(np.int64))


def _warn_of_doubles(path: Path, offsets: npt.NDArray[Any], indices: npt.NDArray[Any]) -> None:
    """Warns if a client holds a sample more than once; the sample then counts as often."""
    sizes = offsets[1:].astype(np.int64) - offsets[:-1].astype(np.int64)
    clients = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((indices, clients))
    same = (np.diff(clients[order]) == 0) & (np.diff(indices[order].astype(np.int64)) == 0)
    if same.any():
        first = order[1:][same][0]
        _log.warning(
            "%s: %d samples are held twice by one client, the first is sample %d of client %d",
            *(path, int(same.sum()), int(indices[first]), int(clients[first])),
        )


_NEEDS_NPZ = (
    "{path} is not an npz file; partition.path must name a file of NumPy with two arrays of integers: "
    "indices, the numbers of the training samples, client after client, and offsets [clients + 1], where "
    "client i holds indices[offsets[i]:offsets[i + 1]]. From a list `shares` of one list per client: "
    "numpy.savez(path, indices=numpy.concatenate(shares), "
    "offsets=numpy.cumsum([0, *map(len, shares)]))"
)


def _read_npz(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        with path.open("rb") as file:
            if (begin := file.read(4)) and not begin.startswith((b"PK", b"\x93NUM")):
                raise InputError(_NEEDS_NPZ.format(path=path))
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it is an npy file, which has one array and no names")
            given = {key: arrays[key] for key in ("offsets", "indices") if key in arrays}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # noqa: BLE001 - NumPy raises almost anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason:  # NumPy's message would advise to allow pickles
            reason = "it does not hold plain numbers only"
        raise InputError(
            f"{path} is not a readable npz file with the arrays offsets and indices: {reason}"
        ) from error
    for key in ("offsets", "indices"):
        if key not in given:
            raise InputError(f"{path}: must have arrays offsets and indices, got no {key}")
        array = given[key]
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"{path}: {key} must be a list of integers, got {array.dtype} {array.shape}"
            )
    return given["offsets"], given["indices"]


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))
