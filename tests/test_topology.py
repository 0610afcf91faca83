"""Graphs, their schedule over the rounds, and averaging weights."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mpi_ntkdfl.config.sections import Topology
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology import schedule as schedule_module
from mpi_ntkdfl.topology import shuffling
from mpi_ntkdfl.topology.graphs import Graph, components, draw
from mpi_ntkdfl.topology.mixing import weights
from mpi_ntkdfl.topology.schedule import Schedule
from tests.conftest import examples

_ADAPTER: TypeAdapter[Topology] = TypeAdapter(Topology)
_FIXED = ["ring", "complete", "star", "grid"]
_RANDOM = ["regular", "erdos-renyi", "small-world"]


def topology(kind: str, **keys: Any) -> Topology:
    return _ADAPTER.validate_python({"kind": kind, **keys})


def drawn(kind: str, clients: int, seed: int = 0, **keys: Any) -> Graph:
    return draw(topology(kind, **keys), clients, seeds.generator(seed, "test"))


def path_graph(clients: int) -> Graph:
    return Graph.from_pairs(clients, [(i, i + 1) for i in range(clients - 1)])


def components_by_search(graph: Graph) -> int:
    """The slow, obvious count: breadth-first search from every client not yet seen."""
    adjacent: dict[int, set[int]] = {i: set() for i in range(graph.clients)}
    for i, j in graph.edges.tolist():
        adjacent[i].add(j)
        adjacent[j].add(i)
    seen: set[int] = set()
    count = 0
    for start in adjacent:
        count += start not in seen
        queue = deque([start])
        while queue:
            i = queue.popleft()
            if i not in seen:
                seen.add(i)
                queue.extend(adjacent[i])
    return count


@st.composite
def any_graph(draw_from: st.DrawFn) -> Graph:
    clients = draw_from(st.integers(1, 30))
    client = st.integers(0, clients - 1)
    drawn_pairs = draw_from(st.lists(st.tuples(client, client), max_size=60))
    return Graph.from_pairs(clients, [(i, j) for i, j in drawn_pairs if i != j])


@st.composite
def any_settings(draw_from: st.DrawFn) -> tuple[Topology, int]:
    clients = draw_from(st.integers(3, 40))
    kind = draw_from(st.sampled_from(_FIXED + _RANDOM))
    keys: dict[str, Any] = {"dynamic": draw_from(st.booleans())}
    if kind == "regular":
        possible = [d for d in range(1, clients) if d * clients % 2 == 0]
        keys["degree"] = draw_from(st.sampled_from(possible))
    if kind == "small-world":
        keys["degree"] = 2 * draw_from(st.integers(1, (clients - 1) // 2))
    if kind in ("small-world", "erdos-renyi"):
        keys["p"] = draw_from(st.floats(0.01, 1))
    return topology(kind, **keys), clients


# ------------------------------------------------------------------------------ the representation


@given(any_graph())
def test_neighbourhoods_repeat_the_edges(graph: Graph) -> None:
    both_ways = {(i, j) for a, b in graph.edges.tolist() for i, j in [(a, b), (b, a)]}
    for i in range(graph.clients):
        expected = sorted(j for a, j in both_ways if a == i)
        assert graph.closed(i).tolist() == sorted([*expected, i])
        assert graph.degrees[i] == len(expected)


def test_from_pairs_sorts_directs_and_joins_repeats() -> None:
    graph = Graph.from_pairs(4, [(3, 1), (1, 0), (1, 3), (0, 1), (2, 1)])
    assert graph.edges.tolist() == [[0, 1], [1, 2], [1, 3]]
    assert graph.edges.dtype == np.int64


@pytest.mark.parametrize("pairs", [[(0, 0)], [(0, 3)], [(-1, 0)]])
def test_from_pairs_refuses_what_is_no_edge(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="pairs must be"):
        Graph.from_pairs(3, pairs)


@pytest.mark.parametrize(
    "edges", [[(1, 0)], [(0, 0)], [(0, 1), (0, 1)], [(1, 2), (0, 1)], [(0, 3)], [(-1, 0)]]
)
def test_constructor_refuses_another_form(edges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="from_pairs"):
        Graph(3, np.array(edges))


def test_a_graph_cannot_be_changed() -> None:
    graph = path_graph(3)
    for array in (graph.edges, graph.closed(1)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# ----------------------------------------------------------------------------------------- drawing


@given(any_settings(), st.integers(0, 2**63 - 1))
def test_drawn_graphs_are_simple_sorted_and_determined(
    which: tuple[Topology, int], seed: int
) -> None:
    kind, clients = which
    graph = draw(kind, clients, seeds.generator(seed, "graph", 0))
    rows = [tuple(row) for row in graph.edges.tolist()]
    assert graph.clients == clients
    assert rows == sorted(set(rows))
    assert all(0 <= i < j < clients for i, j in rows)
    again = draw(kind, clients, seeds.generator(seed, "graph", 0))
    assert np.array_equal(graph.edges, again.edges)


@given(st.integers(2, 40), st.data())
def test_regular_graphs_are_regular(clients: int, data: st.DataObject) -> None:
    possible = [d for d in range(1, clients) if d * clients % 2 == 0]
    degree = data.draw(st.sampled_from(possible))
    assert set(drawn("regular", clients, degree=degree).degrees.tolist()) == {degree}


@pytest.mark.parametrize(
    ("clients", "degree", "seed", "round", "digest"),
    [
        (8, 3, 0, 0, "a44ecbf955769291"),
        (32, 5, 0, 0, "846bd21c835f3d49"),
        (300, 5, 1, 29, "ce997c9648bc1282"),
        (60, 29, 0, 4, "710ead3078d41d27"),
        (60, 40, 1, 2, "bec4d46bd06a632b"),
        (201, 100, 5, 0, "048bbb006ca64dda"),
        (2_000, 10, 7, 3, "28b53c354fcdf0db"),
        (100_000, 5, 0, 0, "d217fbed75ebdb5c"),
    ],
)
def test_published_runs_keep_their_graphs(
    clients: int, degree: int, seed: int, round: int, digest: str
) -> None:
    """Digests of what networkx 3.6 drew for them."""
    graph = Schedule(topology("regular", degree=degree, dynamic=True), clients, seed).graph(round)
    assert hashlib.sha256(graph.edges.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("version", ["arrays", "compiled"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 31, 32, 33, 1_000, 4_095, 4_096, 4_097, 65_537])
def test_arrays_are_shuffled_as_python_shuffles(
    count: int, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffling, "_FEW", 1)
    if version == "arrays":
        monkeypatch.setattr(shuffling, "_build", lambda: None)
    elif shuffling._build() is None:
        pytest.skip("there was no C compiler")
    for seed in range(3):
        ours, pythons = random.Random(seed), random.Random(seed)
        for _ in range(2):  # the second one starts within the generator's words
            expected = list(range(5, 5 + count))
            pythons.shuffle(expected)
            values = np.arange(5, 5 + count, dtype=np.int64)
            assert shuffling.shuffled(ours, values).tolist() == expected
        assert ours.getstate() == pythons.getstate()


def test_nearly_complete_regular_graphs_are_drawn_too() -> None:
    """Drawn directly instead of by complement, this one does not finish."""
    one, other = (drawn("regular", 200, seed, degree=194) for seed in (0, 1))
    assert set(one.degrees.tolist()) == {194}
    assert not np.array_equal(one.edges, other.edges)


@given(st.integers(3, 60), st.booleans())
def test_fixed_shapes_have_their_degrees_and_are_connected(clients: int, dynamic: bool) -> None:
    shapes = {kind: drawn(kind, clients, dynamic=dynamic) for kind in _FIXED}
    assert all(components_by_search(graph) == 1 for graph in shapes.values())
    assert set(shapes["ring"].degrees.tolist()) == {2}
    assert set(shapes["complete"].degrees.tolist()) == {clients - 1}
    assert sorted(shapes["star"].degrees.tolist()) == [1] * (clients - 1) + [clients - 1]
    assert shapes["grid"].degrees.max() <= 4


def test_fixed_shapes_seat_clients_in_order_unless_dynamic() -> None:
    assert drawn("ring", 4).edges.tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]
    assert drawn("star", 3).edges.tolist() == [[0, 1], [0, 2]]
    assert drawn("grid", 6).edges.tolist() == [
        [0, 1], [0, 3], [1, 2], [1, 4], [2, 5], [3, 4], [4, 5],
    ]  # fmt: skip
    centres = {int(drawn("star", 9, seed, dynamic=True).degrees.argmax()) for seed in range(9)}
    assert len(centres) > 1


@pytest.mark.parametrize(("clients", "edges"), [(1, 0), (7, 6), (12, 17), (16, 24), (300, 565)])
def test_the_grid_is_as_square_as_divisors_allow(clients: int, edges: int) -> None:
    """rows x columns has 2 M - rows - columns edges: 1x1, 1x7, 3x4, 4x4, 15x20."""
    assert len(drawn("grid", clients).edges) == edges


def test_erdos_renyi_has_about_its_share_of_edges() -> None:
    # 79,800 possible edges: mean 15,960, standard deviation 113.
    assert abs(len(drawn("erdos-renyi", 400, p=0.2).edges) - 15960) < 600
    assert len(drawn("erdos-renyi", 20, p=1.0).edges) == 190
    assert len(drawn("erdos-renyi", 20, p=1e-300).edges) == 0


def test_small_world_starts_from_the_ring_of_nearest_neighbours() -> None:
    unwired = drawn("small-world", 10, degree=4, p=0.0)
    assert unwired.closed(0).tolist() == [0, 1, 2, 8, 9]
    rewired = drawn("small-world", 100, degree=4, p=0.5)
    assert len(rewired.edges) == 200
    assert set(rewired.degrees.tolist()) != {4}


_DIGEST = """
import hashlib
from tests.test_topology import drawn
edges = [drawn(kind, 60).edges.tobytes() for kind in ("regular", "erdos-renyi", "small-world")]
print(hashlib.sha256(b"".join(edges)).hexdigest())
"""


def test_random_graphs_are_the_same_in_a_process_that_hashes_differently() -> None:
    digest = hashlib.sha256(b"".join(drawn(kind, 60).edges.tobytes() for kind in _RANDOM))
    other = subprocess.run(
        [sys.executable, "-c", _DIGEST],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest.hexdigest()


# ------------------------------------------------------------------------------------------- files


def read(folder: Path, text: str | bytes, clients: int = 4, name: str = "graph.txt") -> Graph:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return drawn("file", clients, path=str(file))


def graphml(body: str, default: str = "undirected") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        f'<graph edgedefault="{default}">{body}</graph></graphml>'
    )


def xml_edge(source: object, target: object) -> str:
    return f'<edge source="{source}" target="{target}"/>'


def test_edge_list_with_comments_blanks_repeats_and_isolated_clients(tmp_path: Path) -> None:
    graph = read(tmp_path, "# my graph\n\n2 0  # spoke\r\n0\t1\n0 2\n")
    assert graph.edges.tolist() == [[0, 1], [0, 2]]
    assert graph.degrees.tolist() == [2, 1, 1, 0]


def test_edge_list_of_an_editor_that_marks_utf8(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff0 1\n").edges.tolist() == [[0, 1]]


@pytest.mark.parametrize("name", ["graph.graphml", "graph.XML"])
def test_graphml(tmp_path: Path, name: str) -> None:
    body = '<node id="3"/>' + xml_edge(2, 0) + xml_edge(0, 1) + xml_edge(1, 0)
    assert read(tmp_path, graphml(body), name=name).edges.tolist() == [[0, 1], [0, 2]]


def test_graphml_written_by_networkx_comes_back(tmp_path: Path) -> None:

    nx.write_graphml(nx.petersen_graph(), tmp_path / "petersen.graphml")
    graph = drawn("file", 10, path=str(tmp_path / "petersen.graphml"))
    assert {(i, j) for i, j in graph.edges.tolist()} == set(nx.petersen_graph().edges())


def test_directed_graphml_needs_both_directions(tmp_path: Path) -> None:
    both = graphml(xml_edge(0, 1) + xml_edge(1, 0), "directed")
    assert read(tmp_path, both, name="g.graphml").edges.tolist() == [[0, 1]]
    one = graphml(xml_edge(0, 1) + xml_edge(1, 0) + xml_edge(2, 1), "directed")
    with pytest.raises(InputError, match="got 2 to 1 without its reverse"):
        read(tmp_path, one, name="g.graphml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n2 2\n", "line 2: an edge must join two different clients, got 2"),
        ("0 1\n\n0 4\n", "line 3: a node must be an integer from 0 to 3, got '4'"),
        ("0 -1\n", "line 1: a node must .* got '-1'"),
        ("0 1.0\n", "line 1: a node must .* got '1.0'"),
        ("0 1_0\n", "line 1: a node must .* got '1_0'"),
        ("0 \u0663\n", "line 1: a node must"),
        ("0 " + "9" * 5000, "line 1: a node must"),
        ("0 1 two\n", "line 1: an edge must be two clients"),
        ("0 1 {} {}\n", "line 1: an edge must be two clients"),
        ("a b\n", "names 2 nodes, and there are 4 clients: set clients to 2"),
        ("a 1\n", "a node must be an integer from 0 to 3, got 'a'"),
        ("0\n", "line 1: an edge must be two clients"),
        (b"\xff\xfe\x00", "readable UTF-8 file"),
    ],
)
def test_malformed_edge_lists_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


_BOMB = (
    '<!DOCTYPE g [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph>&b;</graph></graphml>'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (graphml(xml_edge(1, 1)), "edge '1' to '1': an edge must join two different"),
        (graphml(xml_edge(0, "n1")), "node 'n1': a node must be an integer"),
        (graphml('<node id="4"/>'), "node '4': a node must be an integer from 0 to 3"),
        (graphml('<node id="01"/>'), "node '01'"),
        (graphml('<edge source="0"/>'), "node 'None'"),
        (graphml("<hyperedge/>"), "must be valid GraphML, got: .*hyperedges"),
        (graphml('<node id="0"><data key="d0">1</data></node>'), "must be valid GraphML"),
        (graphml('<edge source="0" target="1" directed="true"/>'), "must be valid GraphML"),
        (graphml("")[:-3], "must be valid GraphML"),
        ("<graphml/>", "must hold one GraphML graph, got 0"),
        (graphml("").replace("</graphml>", "<graph/></graphml>"), "one GraphML graph, got 2"),
        ("0 1\n", "must hold one GraphML graph, got 0"),
        (_BOMB, "must not declare a DOCTYPE or ENTITY"),
        (_BOMB.encode("utf-16"), "readable UTF-8 file"),
    ],
)
def test_malformed_graphml_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, name="graph.graphml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path, "a\0b"):
        with pytest.raises(
            InputError, match=r"topology\.path( must name a readable|: a path cannot)"
        ):
            drawn("file", 3, path=str(path))


# ---------------------------------------------------------------------------------------- analysis


@given(any_graph())
def test_components_agree_with_search(graph: Graph) -> None:
    assert components(graph) == components_by_search(graph)


def test_components_of_a_long_path_in_random_order() -> None:
    order = np.random.default_rng(0).permutation(5000)
    pairs = np.stack([order[:-1], order[1:]], axis=1)
    assert components(Graph.from_pairs(5000, pairs)) == 1
    assert components(Graph.from_pairs(5000, np.delete(pairs, [10, 2000], axis=0))) == 3


# ---------------------------------------------------------------------------------------- schedule


@given(any_settings(), st.integers(0, 2**63 - 1), st.permutations([0, 1, 2, 17]))
@examples(50)
def test_a_round_depends_on_seed_and_number_alone(
    which: tuple[Topology, int], seed: int, order: list[int]
) -> None:
    kind, clients = which
    schedule = Schedule(kind, clients, seed)
    for round_ in order:
        fresh = draw(kind, clients, seeds.generator(seed, "graph", round_ if kind.dynamic else 0))
        assert np.array_equal(schedule.graph(round_).edges, fresh.edges)


@pytest.mark.parametrize("kind", [*_FIXED, *_RANDOM, "file"])
def test_rounds_differ_only_if_dynamic(kind: str, tmp_path: Path) -> None:
    (tmp_path / "graph.txt").write_text("".join(f"{i} {i + 1}\n" for i in range(19)))
    path = {"path": str(tmp_path / "graph.txt")} if kind == "file" else {}
    static = Schedule(topology(kind, dynamic=False, **path), 20, 3)
    assert static.graph(0) is static.graph(5)
    dynamic = Schedule(topology(kind, dynamic=True, **path), 20, 3)
    fifth = dynamic.graph(5)
    assert dynamic.graph(5) is fifth
    same = np.array_equal(fifth.edges, dynamic.graph(6).edges)
    assert same == (kind == "complete")
    assert np.array_equal(fifth.edges, dynamic.graph(5).edges)


@pytest.mark.parametrize("kind", _RANDOM)
def test_seeds_differ(kind: str) -> None:
    one, other = (Schedule(topology(kind), 20, seed).graph(0) for seed in (0, 1))
    assert not np.array_equal(one.edges, other.edges)


def test_a_dynamic_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "graph.txt"
    file.write_text("0 1\n1 2\n")
    schedule = Schedule(topology("file", path=str(file), dynamic=True), 3, 0)
    file.unlink()
    assert [sorted(schedule.graph(r).degrees.tolist()) for r in range(3)] == [[1, 1, 2]] * 3


def test_one_warning_for_disconnected_graphs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "graph.txt").write_text("0 1\n2 3\n")
    for dynamic in (False, True):
        caplog.clear()
        which = topology("file", path=str(tmp_path / "graph.txt"), dynamic=dynamic)
        schedule = Schedule(which, 5, 0)
        for round_ in (7, 8, 9):
            schedule.graph(round_)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "round 7 has 3 components" in caplog.text
        assert "averages cannot mix across components" in caplog.text


def test_ranks_that_never_warn_do_not_look_for_components(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_module, "components", None)
    with caplog.at_level(logging.ERROR, "mpi_ntkdfl"):
        Schedule(topology("ring"), 5, 0).graph(0)


def test_the_warning_waits_for_the_first_disconnected_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fresh() -> Schedule:
        return Schedule(topology("erdos-renyi", p=0.12), 30, 0)

    # About every second of these graphs is connected.
    parts = [components_by_search(fresh().graph(r)) for r in range(30)]
    whole = [r for r in range(30) if parts[r] == 1]
    broken = [r for r in range(30) if parts[r] > 1]
    caplog.clear()
    schedule = fresh()
    for round_ in whole:
        schedule.graph(round_)
    assert whole
    assert not caplog.records
    for round_ in broken:
        schedule.graph(round_)
    assert len(caplog.records) == 1
    assert f"round {broken[0]} has {parts[broken[0]]} components" in caplog.text


def test_no_warning_for_connected_graphs(caplog: pytest.LogCaptureFixture) -> None:
    Schedule(topology("ring", dynamic=True), 10, 0).graph(0)
    assert not caplog.records


# ------------------------------------------------------------------------------------------ mixing


@given(any_graph(), st.data())
def test_weights_follow_their_formula_and_sum_to_one(graph: Graph, data: st.DataObject) -> None:
    counts = st.lists(st.integers(1, 10**9), min_size=graph.clients, max_size=graph.clients)
    sizes = np.array(data.draw(counts))
    plain, samples = weights("plain", graph), weights("samples", graph, sizes)
    for i in range(graph.clients):
        ids = graph.closed(i)
        assert plain.of(i).tolist() == [1 / len(ids)] * len(ids)
        assert np.allclose(samples.of(i), sizes[ids] / sizes[ids].sum(), rtol=1e-14)
        assert plain.of(i).sum() == pytest.approx(1, abs=1e-14)
        assert samples.of(i).sum() == pytest.approx(1, abs=1e-14)
        assert plain.of(i).dtype == samples.of(i).dtype == np.float64


def test_a_client_without_samples_counts_for_nothing() -> None:
    assert weights("samples", path_graph(3), [0, 3, 1]).of(0).tolist() == [0, 1]


def test_weights_need_samples_in_every_neighbourhood() -> None:
    with pytest.raises(InputError, match="client 0"):
        weights("samples", path_graph(4), [0, 0, 1, 1])


@pytest.mark.parametrize("sizes", [None, [1, 1], [1, 1, 1, 1], [1, -1, 1]])
def test_weights_need_one_size_a_client(sizes: list[int] | None) -> None:
    with pytest.raises(ValueError, match="sizes must be 3 numbers"):
        weights("samples", path_graph(3), sizes)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="'other'"):
        weights("other", path_graph(3))  # type: ignore[arg-type]


# ---------------------------------------------------------------- files as networkx and people write them


@pytest.mark.parametrize("write", [nx.write_edgelist, nx.write_weighted_edgelist, nx.write_graphml])
def test_files_of_networkx_with_and_without_weights(tmp_path, caplog, write):
    """Weights are ignored in every format, and said."""
    plain = nx.cycle_graph(4)
    weighted = nx.Graph([(*edge, {"weight": 2.5}) for edge in plain.edges()])
    for number, drawn_from in enumerate((plain, weighted)):
        path = tmp_path / ("g.graphml" if write is nx.write_graphml else "g.txt")
        if write is nx.write_weighted_edgelist and not number:
            continue
        write(drawn_from, path)
        caplog.clear()
        graph = drawn("file", 4, path=str(path))
        assert graph.edges.tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]
        assert ("weights and other attributes of edges are ignored" in caplog.text) == bool(number)


@pytest.mark.parametrize("suffix", ["txt", "graphml"])
def test_names_are_numbered_in_alphabetical_order(tmp_path, suffix):
    named = nx.Graph([("dora", "carl"), ("carl", "anna"), ("anna", "bert")])
    path = tmp_path / f"g.{suffix}"
    (nx.write_edgelist if suffix == "txt" else nx.write_graphml)(named, path)
    graph = drawn("file", 4, path=str(path))
    assert graph.names == ("anna", "bert", "carl", "dora")
    assert graph.edges.tolist() == [[0, 1], [0, 2], [2, 3]]


def test_metropolis_weights_are_symmetric_and_sum_to_one():
    graph = drawn("star", 5)
    found = weights("metropolis", graph)
    matrix = np.zeros((5, 5))
    for client in range(5):
        matrix[client, graph.closed(client)] = found.of(client)
    expected = np.diag([0.2, *[0.8] * 4])
    expected[0, 1:] = expected[1:, 0] = 0.2
    assert matrix == pytest.approx(expected)
    assert weights("metropolis", Graph.from_pairs(2, [])).values.tolist() == [1, 1]
