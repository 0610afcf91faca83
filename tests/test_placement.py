"""Which rank owns whom, and what crosses between ranks."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import (
    Placement,
    neighbour_ranks,
    pairs,
    receive_clients,
    send_clients,
)


@st.composite
def placements(draw_from: st.DrawFn) -> Placement:
    clients = draw_from(st.integers(1, 25))
    return Placement(clients, draw_from(st.integers(1, clients)))


@st.composite
def placed_graphs(draw_from: st.DrawFn) -> tuple[Graph, Placement]:
    placement = draw_from(placements())
    client = st.integers(0, placement.clients - 1)
    drawn = draw_from(st.lists(st.tuples(client, client), max_size=60))
    graph = Graph.from_pairs(placement.clients, [(i, j) for i, j in drawn if i != j])
    return graph, placement


def both_ways(graph: Graph) -> list[tuple[int, int]]:
    return sorted((i, j) for a, b in graph.edges.tolist() for i, j in [(a, b), (b, a)])


# --------------------------------------------------------------------------------------- ownership


@given(placements())
def test_every_client_has_one_owner_and_shares_are_nearly_equal(placement: Placement) -> None:
    shares = [placement.owned(rank) for rank in range(placement.ranks)]
    assert [client for share in shares for client in share] == list(range(placement.clients))
    share, extra = divmod(placement.clients, placement.ranks)
    assert [len(s) for s in shares] == [share + (rank < extra) for rank in range(placement.ranks)]


@given(placements())
def test_owner_is_who_owns(placement: Placement) -> None:
    expected = [rank for rank in range(placement.ranks) for _ in placement.owned(rank)]
    every = np.arange(placement.clients)
    assert placement.owner(every).tolist() == expected
    assert [placement.owner(client) for client in range(placement.clients)] == expected
    assert placement.owner(every.reshape(1, -1)).shape == (1, placement.clients)
    assert type(placement.owner(0)) is int


# ----------------------------------------------------------------------------------- unequal costs


@st.composite
def costs_and_ranks(draw_from: st.DrawFn) -> tuple[np.ndarray, int]:
    costs = draw_from(st.lists(st.integers(0, 50) | st.just(10**12), min_size=1, max_size=12))
    return np.array(costs, dtype=np.int64), draw_from(st.integers(1, len(costs)))


def loads(costs: np.ndarray, placement: Placement) -> list[int]:
    owned = [placement.owned(rank) for rank in range(placement.ranks)]
    return [int(costs[own.start : own.stop].sum()) for own in owned]


@given(costs_and_ranks())
def test_no_contiguous_shares_have_a_lower_largest_load(drawn: tuple[np.ndarray, int]) -> None:
    costs, ranks = drawn
    found = Placement.balanced(costs, ranks)
    assert [c for r in range(ranks) for c in found.owned(r)] == list(range(len(costs)))
    assert all(len(found.owned(rank)) >= 1 for rank in range(ranks))
    counted = np.maximum(costs, 1)  # no client is free
    every = (
        Placement(len(costs), ranks, cuts)
        for cuts in itertools.combinations(range(1, len(costs)), ranks - 1)
    )
    assert max(loads(counted, found)) == min(max(loads(counted, each)) for each in every)


@given(placements(), st.integers(0, 10**9))
def test_equal_costs_give_equal_shares(placement: Placement, cost: int) -> None:
    found = Placement.balanced(np.full(placement.clients, cost), placement.ranks)
    assert found.offsets.tolist() == placement.offsets.tolist()


def test_unequal_costs_by_hand() -> None:
    """Six clients on three ranks: 9 alone, then 1 + 2 + 3 and 4 + 2 instead of pairs."""
    costs = np.array([9, 1, 2, 3, 4, 2])
    assert Placement.balanced(costs, 3).offsets.tolist() == [0, 1, 4, 6]
    assert loads(costs, Placement(6, 3)) == [10, 5, 6]
    # No rank is left without a client, even if one client costs more than all others.
    assert Placement.balanced(np.array([1, 1, 1, 90]), 3).offsets.tolist() == [0, 2, 3, 4]


def test_sizes_like_femnist_are_balanced() -> None:
    """Writers' samples vary by a factor of ten; costs go with samples squared."""
    sizes = np.random.default_rng(0).lognormal(5.3, 0.5, 3000)
    costs = np.rint(sizes**2).astype(np.int64)
    before, after = (
        max(loads(costs, p)) / np.mean(loads(costs, p))
        for p in (Placement(3000, 64), Placement.balanced(costs, 64))
    )
    assert before > 1.3
    assert after < 1.03


def test_cuts_that_leave_a_rank_empty_are_refused() -> None:
    for cuts in [(), (0,), (3,), (1, 2)]:
        with pytest.raises(ValueError, match="without clients"):
            Placement(3, 2, cuts)


def test_more_ranks_than_clients_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        Placement(3, 4)
    assert str(caught.value) == (
        "more ranks than clients: got 4 ranks for 3 clients; start at most 3 ranks"
    )
    assert Placement(3, 3).offsets.tolist() == [0, 1, 2, 3]


def test_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Placement(3, 0)


# ---------------------------------------------------------------------------------------- crossing


def test_an_example_by_hand() -> None:
    """Ranks own {0, 1}, {2, 3}, {4}; client 1 has two neighbours on rank 1 and crosses once."""
    graph, placement = Graph.from_pairs(5, [(0, 1), (1, 2), (1, 3), (3, 4)]), Placement(5, 3)
    assert neighbour_ranks(graph, placement, 0).tolist() == [1]
    assert neighbour_ranks(graph, placement, 1).tolist() == [0, 2]
    assert send_clients(graph, placement, 0, 1).tolist() == [1]
    assert send_clients(graph, placement, 1, 0).tolist() == [2, 3]
    assert send_clients(graph, placement, 0, 2).tolist() == []
    assert pairs(graph, placement, 0, 1).tolist() == [[2, 1], [3, 1]]
    assert pairs(graph, placement, 1, 0).tolist() == [[1, 2], [1, 3]]
    assert pairs(graph, placement, 0, 0).tolist() == [[0, 1], [1, 0]]
    assert pairs(graph, placement, 1, 1).tolist() == []
    assert pairs(graph, placement, 2, 0).shape == (0, 2)


@given(placed_graphs())
def test_neighbour_ranks_are_those_an_edge_joins(placed: tuple[Graph, Placement]) -> None:
    graph, placement = placed
    joined = {(placement.owner(i), placement.owner(j)) for i, j in both_ways(graph)}
    for r in range(placement.ranks):
        expected = sorted(s for a, s in joined if a == r and s != r)
        assert neighbour_ranks(graph, placement, r).tolist() == expected


@given(placed_graphs())
def test_sender_and_receiver_derive_the_same_list(placed: tuple[Graph, Placement]) -> None:
    graph, placement = placed
    for r in range(placement.ranks):
        for s in set(range(placement.ranks)) - {r}:
            sent = send_clients(graph, placement, r, s).tolist()
            crossing = {
                i
                for i, j in both_ways(graph)
                if i in placement.owned(r) and j in placement.owned(s)
            }
            assert sent == sorted(crossing)
            assert receive_clients(graph, placement, s, r).tolist() == sent
            assert bool(sent) == (s in neighbour_ranks(graph, placement, r))


@given(placed_graphs())
def test_own_and_received_clients_are_all_a_rank_averages(
    placed: tuple[Graph, Placement],
) -> None:
    graph, placement = placed
    for r in range(placement.ranks):
        at_hand = set(placement.owned(r))
        for s in neighbour_ranks(graph, placement, r).tolist():
            at_hand |= set(send_clients(graph, placement, s, r).tolist())
        needed = {j for i in placement.owned(r) for j in graph.closed(i).tolist()}
        assert at_hand == needed | set(placement.owned(r))


@given(placed_graphs())
def test_pairs_cover_every_directed_edge_once_for_any_number_of_ranks(
    placed: tuple[Graph, Placement],
) -> None:
    graph, placement = placed
    ranks = range(placement.ranks)
    covered: list[tuple[int, int]] = []
    for source in ranks:
        for target in ranks:
            found = pairs(graph, placement, source, target)
            rows = [(i, j) for i, j in found.tolist()]
            assert rows == sorted(rows)
            assert found.dtype == np.int64
            assert all(i in placement.owned(target) for i, _ in rows)
            assert all(j in placement.owned(source) for _, j in rows)
            covered += rows
    assert sorted(covered) == both_ways(graph)


# ------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(
    ("clients", "edges"),
    [
        (5000, [(i, (i + step) % 5000) for step in (1, 7, 100) for i in range(5000)]),
        (500, [(i, j) for i in range(500) for j in range(i)]),
    ],
    ids=["5000 sparse", "500 complete"],
)
def test_one_rank_is_quick(clients: int, edges: list[tuple[int, int]]) -> None:
    """Milliseconds each on a quiet machine; the limit only catches loops over all pairs."""
    graph, placement = Graph.from_pairs(clients, edges), Placement(clients, 16)
    start = time.process_time()
    for other in neighbour_ranks(graph, placement, 3).tolist():
        send_clients(graph, placement, 3, other)
        receive_clients(graph, placement, 3, other)
        pairs(graph, placement, other, 3)
    assert time.process_time() - start < 1
