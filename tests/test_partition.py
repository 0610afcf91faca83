"""Partitions: what every kind promises, and files that are wrong."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_ntkdfl.config import sections
from mpi_ntkdfl.data import partition
from mpi_ntkdfl.runtime.errors import InputError

IID = sections.IidPartition(kind="iid")
WRITER = sections.WriterPartition(kind="writer")

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(
    lambda labels: np.array(labels, np.int64)
)
seeds_ = st.integers(0, 2**63 - 1)


def dirichlet(alpha: float = 0.1, samples: int | None = None) -> sections.DirichletPartition:
    return sections.DirichletPartition(kind="dirichlet", alpha=alpha, samples=samples)


def shards(per_client: int) -> sections.ShardsPartition:
    return sections.ShardsPartition(kind="shards", per_client=per_client)


def check_shape(parts: partition.Partition, clients: int, n: int) -> None:
    assert parts.offsets.dtype == parts.indices.dtype == np.int64
    assert parts.offsets[0] == 0
    assert parts.offsets[-1] == len(parts.indices)
    assert parts.sizes.shape == (clients,)
    assert parts.sizes.min() >= 1
    assert parts.indices.min() >= 0
    assert parts.indices.max() < n
    assert np.array_equal(np.concatenate([parts.client(i) for i in range(clients)]), parts.indices)


def same(a: partition.Partition, b: partition.Partition) -> bool:
    return np.array_equal(a.offsets, b.offsets) and np.array_equal(a.indices, b.indices)


# ----------------------------------------------------------------------------------- iid and shards


@given(label_lists, seeds_, st.data())
def test_iid_covers_without_overlap_in_near_equal_shares(
    labels: np.ndarray, seed: int, data: st.DataObject
) -> None:
    n = len(labels)
    clients = data.draw(st.integers(1, n))
    parts = partition.make(IID, labels, clients, seed)
    check_shape(parts, clients, n)
    assert np.array_equal(np.sort(parts.indices), np.arange(n))
    assert np.ptp(parts.sizes) <= 1


@given(label_lists, seeds_, st.data())
def test_shards_cover_without_overlap_and_hold_few_labels(
    labels: np.ndarray, seed: int, data: st.DataObject
) -> None:
    n = len(labels)
    per_client = data.draw(st.integers(1, min(3, n)))
    clients = data.draw(st.integers(1, n // per_client))
    parts = partition.make(shards(per_client), labels, clients, seed)
    check_shape(parts, clients, n)
    assert np.array_equal(np.sort(parts.indices), np.arange(n))
    assert np.ptp(parts.sizes) <= per_client
    for i in range(clients):
        assert (np.diff(labels[parts.client(i)]) >= 0).all()


def test_shards_of_pure_classes_give_per_client_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 20))
    parts = partition.make(shards(2), labels, 50, seed=1)
    assert max(len(np.unique(labels[parts.client(i)])) for i in range(50)) == 2


def test_iid_is_random() -> None:
    parts = partition.make(IID, np.zeros(1000, np.int64), 4, seed=0)
    assert not np.array_equal(parts.indices, np.arange(1000))
    assert 400 < parts.client(0).mean() < 600


@pytest.mark.parametrize("kind", [IID, shards(2), dirichlet()], ids=lambda kind: kind.kind)
def test_the_seed_alone_decides(kind: sections.Partition) -> None:
    labels = np.arange(600) % 10
    first = partition.make(kind, labels, 20, seed=3)
    np.random.seed(99)  # noqa: NPY002 - global state must not matter
    assert same(first, partition.make(kind, labels, 20, seed=3))
    assert not same(first, partition.make(kind, labels, 20, seed=4))


@pytest.mark.parametrize("kind", [IID, shards(2), dirichlet()], ids=lambda kind: kind.kind)
def test_too_many_clients(kind: sections.Partition) -> None:
    with pytest.raises(InputError, match="got 5 .*6"):
        partition.make(kind, np.arange(5), 6, seed=0)


# ---------------------------------------------------------------------------------------- dirichlet


@given(
    label_lists,
    st.integers(1, 12),
    st.floats(1e-320, 1e9),
    st.integers(1, 200),
    seeds_,
)
def test_dirichlet_promises(
    labels: np.ndarray, clients: int, alpha: float, samples: int, seed: int
) -> None:
    parts = partition.make(dirichlet(alpha, samples), labels, clients, seed)
    check_shape(parts, clients, len(labels))
    assert parts.sizes.max() <= samples
    for i in range(clients):
        mine = parts.client(i)
        assert len(np.unique(mine)) == len(mine)
        assert (np.diff(labels[mine]) >= 0).all()


def test_dirichlet_client_does_not_depend_on_the_number_of_clients() -> None:
    labels = np.arange(3000) % 10
    few = partition.make(dirichlet(0.5, samples=50), labels, 3, seed=7)
    many = partition.make(dirichlet(0.5, samples=50), labels, 30, seed=7)
    for i in range(3):
        assert np.array_equal(few.client(i), many.client(i))


@pytest.mark.parametrize(
    ("alpha", "samples", "digest"), [(0.1, 20, "69aa7897774c966e"), (1.0, 100, "0008e85fe6814306")]
)
def test_published_runs_keep_their_shares(alpha: float, samples: int, digest: str) -> None:
    labels = np.random.Generator(np.random.Philox(1)).integers(0, 10, 1500)
    parts = partition.make(dirichlet(alpha, samples), labels, 40, seed=3)
    assert hashlib.sha256(parts.indices.tobytes()).hexdigest()[:16] == digest


def test_dirichlet_of_tiny_alpha_gives_one_class_each_and_all_classes_in_turn() -> None:
    labels = np.arange(5000) % 10
    parts = partition.make(dirichlet(1e-4, samples=100), labels, 200, seed=0)
    held = [np.unique(labels[parts.client(i)]) for i in range(200)]
    assert sum(len(classes) == 1 for classes in held) >= 195
    # 200 fair draws from 10 classes: 20 each, give or take 4.3.
    counts = np.bincount([classes[0] for classes in held], minlength=10)
    assert counts.min() >= 3
    assert counts.max() <= 45


def test_dirichlet_of_large_alpha_gives_equal_classes() -> None:
    labels = np.arange(5000) % 10
    parts = partition.make(dirichlet(1e6, samples=105), labels, 20, seed=0)
    for i in range(20):
        assert (np.bincount(labels[parts.client(i)]) == 10).all()


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 5.0])
def test_dirichlet_proportions_have_the_right_moments(alpha: float) -> None:
    random = np.random.default_rng(0)
    draws = np.array([partition._draw_proportions(alpha, 5, random) for _ in range(20_000)])
    variance = (1 / 5) * (4 / 5) / (5 * alpha + 1)
    assert np.allclose(draws.sum(axis=1), 1)
    assert np.allclose(draws.mean(axis=0), 1 / 5, atol=5 * np.sqrt(variance / len(draws)))
    assert np.allclose(draws.var(axis=0), variance, rtol=0.1)
    reference = random.dirichlet(np.full(5, alpha), 20_000)
    grid = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    ours, theirs = ([(sample[:, 0] < x).mean() for x in grid] for sample in (draws, reference))
    assert np.allclose(ours, theirs, atol=0.025)


def test_dirichlet_sizes_at_the_papers_setting() -> None:
    labels = np.arange(60_000) % 10
    parts = partition.make(dirichlet(0.1), labels, 300, seed=0)
    assert parts.sizes.min() >= 192
    assert parts.sizes.max() <= 200
    # Clients overlap: a draw of 59 k out of 60 k, every client for itself, reaches about 1 - 1/e.
    assert 0.61 < len(np.unique(parts.indices)) / 60_000 < 0.645


def test_dirichlet_takes_a_whole_class_where_it_asks_for_more() -> None:
    labels = np.repeat(np.arange(2), [3, 1000])
    parts = partition.make(dirichlet(1e6, samples=100), labels, 4, seed=0)
    for i in range(4):
        assert set(parts.client(i)[:3]) == {0, 1, 2}
        assert 49 <= len(parts.client(i)) - 3 <= 50


def test_dirichlet_client_of_a_single_sample_takes_its_likeliest_class() -> None:
    labels = np.arange(100) % 10
    parts = partition.make(dirichlet(10.0, samples=1), labels, 50, seed=0)
    assert (parts.sizes == 1).all()
    assert len(np.unique(labels[parts.indices])) > 5


def test_dirichlet_passes_over_a_class_without_samples() -> None:
    labels = np.repeat([0, 5], 100)
    parts = partition.make(dirichlet(1e6, samples=20), labels, 3, seed=0)
    assert parts.sizes.min() >= 18


# ------------------------------------------------------------------------------------------ writers


def test_writer_gives_each_client_its_writer() -> None:
    writers = np.array([2, 0, 1, 0, 2, 2])
    parts = partition.make(WRITER, np.zeros(6, np.int64), 3, 0, writers)
    check_shape(parts, 3, 6)
    assert [parts.client(i).tolist() for i in range(3)] == [[1, 3], [2], [0, 4, 5]]
    assert partition.make(WRITER, np.zeros(6, np.int64), 2, 0, writers).indices.tolist() == [
        1,
        3,
        2,
    ]


@pytest.mark.parametrize(
    ("writers", "clients", "message"),
    [
        (None, 1, "needs a data set with sites"),
        (np.array([0, 1, 1]), 3, "got 3 clients"),
        (np.array([0, 2, 2]), 3, "got 0 at site 1"),
    ],
)
def test_writer_that_cannot_be(writers: np.ndarray | None, clients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition.make(WRITER, np.zeros(3, np.int64), clients, 0, writers)


# -------------------------------------------------------------------------------------------- sites

SITES = np.repeat([0, 1, 2], [2, 12, 30])
SITE_LABELS = np.arange(44) % 3


def by_site(clients: int, **settings: Any) -> partition.Partition:
    kind = sections.SitePartition.model_validate({"kind": "site", **settings})
    return partition.make(kind, SITE_LABELS, clients, 5, SITES, ("a", "b", "c"))


def test_small_sites_are_refused_or_dropped() -> None:
    assert by_site(3).sizes.tolist() == [2, 12, 30]
    with pytest.raises(
        InputError, match=r"at least 5 training samples, got 2 at site a.*too_small=drop"
    ):
        by_site(2, min_samples=5)
    assert by_site(2, min_samples=5, too_small="drop").sizes.tolist() == [12, 30]
    with pytest.raises(
        InputError, match=r"= 2 clients \(1 of too few samples are left out\), got 3"
    ):
        by_site(3, min_samples=5, too_small="drop")


@pytest.mark.parametrize(
    "within", [None, {"kind": "iid"}, {"kind": "dirichlet", "alpha": 1.0}, {"kind": "shards"}]
)
def test_clients_of_a_site_share_its_samples(within: dict[str, Any] | None) -> None:
    parts = by_site(4, per_site=2, too_small="drop", min_samples=2, within=within)
    assert [set(SITES[parts.client(i)]) for i in range(4)] == [{1}, {1}, {2}, {2}]
    if not within or within["kind"] != "dirichlet":
        assert sorted(parts.indices) == list(range(2, 44))
    with pytest.raises(InputError, match=r"partition\.within at site a: shards needs"):
        by_site(6, per_site=1, within={"kind": "shards", "per_client": 3})


def test_the_clients_of_two_sites_draw_differently() -> None:
    same = np.repeat([0, 1], 60)
    kind = sections.SitePartition.model_validate(
        {"kind": "site", "per_site": 2, "within": {"kind": "dirichlet", "alpha": 0.5}}
    )
    parts = partition.make(kind, np.tile(np.arange(60) % 5, 2), 4, 0, same)
    assert sorted(parts.client(0)) != sorted(parts.client(2) - 60)


# -------------------------------------------------------------------------------------------- files


def read(path: Path, clients: int = 3, n: int = 10) -> partition.Partition:
    kind = sections.FilePartition(kind="file", path=str(path))
    return partition.make(kind, np.zeros(n, np.int64), clients, seed=0)


@pytest.mark.parametrize("offset_type", ["i1", "u2", "<i4", ">i8", "u8"])
@pytest.mark.parametrize("index_type", ["u1", "u2", ">i4", "u8"])
def test_file_of_any_integer_type(tmp_path: Path, offset_type: str, index_type: str) -> None:
    offsets, indices = [0, 2, 3, 6], [9, 0, 4, 4, 1, 0]
    np.savez_compressed(
        tmp_path / "p.npz",
        offsets=np.array(offsets, offset_type),
        indices=np.array(indices, index_type),
    )
    parts = read(tmp_path / "p.npz")
    check_shape(parts, 3, 10)
    assert parts.offsets.tolist() == offsets
    assert parts.indices.tolist() == indices


GOOD: dict[str, Any] = {"offsets": np.array([0, 1, 2, 4]), "indices": np.array([0, 1, 2, 3])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": None}, "no offsets"),
        ({"indices": None}, "no indices"),
        ({"indices": np.array([0.0, 1, 2, 3])}, "indices must be a list of integers, got float64"),
        (
            {"offsets": np.array([[0, 1, 2, 4]])},
            r"offsets must be a list of integers, got int64 \(1",
        ),
        (
            {"offsets": np.array([0, 1, 2, 4], object)},
            "not a readable npz file.*plain numbers only",
        ),
        ({"offsets": np.array([], int)}, "clients . 1 = 4 entries, got 0"),
        ({"offsets": np.array([0, 1, 4])}, "clients . 1 = 4 entries, got 3: set clients to 2"),
        ({"offsets": np.array([1, 2, 3, 4])}, "start with 0, got 1"),
        ({"offsets": np.array([0, 3, 2, 4], "u1")}, "ascend, got 3 then 2 at client 1"),
        ({"offsets": np.array([0, 1, 2, 3])}, "number of indices, 4, got 3"),
        ({"offsets": np.array([0, 1, 1, 4])}, "none for client 1"),
        ({"indices": np.array([0, 1, -1, 3])}, "in 0..9.*got -1 at position 2, client 2"),
        ({"indices": np.array([0, 10, 2, 11])}, "got 10 at position 1, client 1"),
        ({"indices": np.array([0, 1, 2, 2**63], "u8")}, "got 9223372036854775808 at position 3"),
    ],
)
def test_file_that_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (GOOD | change).items() if value is not None}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path / "p.npz")
    assert "p.npz" in str(raised.value)
    assert "\n" not in str(raised.value)


NO_NPZ = "p.npz is not an npz file; partition.path must name a file of NumPy with two arrays"
DAMAGED = "p.npz is not a readable npz file with the arrays offsets and indices: "


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", DAMAGED),
        (b"PK", DAMAGED),
        (b"hello", NO_NPZ),
        (b"\x80\x04]\x94.", NO_NPZ),
        (None, DAMAGED + "it is an npy file, which has one array and no names"),
    ],
)
def test_file_that_is_no_npz(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "p.npz"
    if content is None:
        with path.open("wb") as file:
            np.save(file, np.arange(4))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read(path)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_damaged_file_is_refused_or_still_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, save: Any, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    save(buffer, **GOOD)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans(), "truncate"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:
        for bit in data.draw(
            st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)
        ):
            content[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    try:
        parts = read(path)
    except InputError:
        return
    # The zip's check sums leave only fields without a meaning here to be damaged unnoticed.
    assert same(parts, partition.Partition(GOOD["offsets"], GOOD["indices"]))
