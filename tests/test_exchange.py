"""Messages, waves, reductions and averages, in one process."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.comm.graph_channel import GraphChannel
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.comm.mpi import MpiWorld
from mpi_ntkdfl.comm.reduce import exact_mean
from mpi_ntkdfl.comm.world import Channel, SoloWorld, World
from mpi_ntkdfl.config.sections import RegularTopology
from mpi_ntkdfl.federation.exchange import Exchange, mean_over_clients
from mpi_ntkdfl.federation.waves import (
    WorkingSet,
    factored_waves,
    neighbourhood_sums,
    slice_width,
    smallest_limit,
)
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.params import ALIGNMENT, aligned
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement
from mpi_ntkdfl.topology.schedule import Schedule
from tests.conftest import examples, make_federation, random_weights

WORK = WorkingSet(MLP((6, 5, 3)), taus=2, itemsize=8)


def public(protocol):
    return {name for name in vars(protocol) if not name.startswith("_")}


def test_implementations_have_the_whole_interface():
    assert public(World) <= public(SoloWorld)
    assert public(World) <= public(MpiWorld)
    assert public(Channel) <= public(GraphChannel)


# ------------------------------------------------------------------------------------------ messages


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), min_size=1, max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.int32]),
)
def test_messages_come_back_as_they_were(shapes, dtype):
    """`shapes`: samples and width of each message; all go into one buffer, one after another."""
    forms, arrays = [], []
    for samples, width in shapes:
        forms.append(
            MessageFormat(
                {"a": Field("outputs", (width, 2), dtype), "b": Field("labels", (), dtype)}
            )
        )
        arrays.append(
            {
                "a": torch.arange(samples * width * 2).view(samples, width, 2).to(dtype),
                "b": torch.arange(samples).to(dtype),
            }
        )
    sizes = [form.nbytes(n) for form, (n, _) in zip(forms, shapes, strict=True)]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8)
    position = 0
    for form, (samples, _), array in zip(forms, shapes, arrays, strict=True):
        position = form.write(buffer, position, samples, array)
    assert position == sum(sizes)
    starts = itertools.accumulate(sizes, initial=0)
    for form, (samples, _), array, start in zip(forms, shapes, arrays, starts, strict=False):
        found = form.read(buffer, start, samples)
        for name, wanted in array.items():
            assert torch.equal(found[name], wanted)
            assert found[name].data_ptr() % ALIGNMENT == 0 or not wanted.numel()


def test_payload_is_counted_without_padding():
    form = MessageFormat({"a": Field("outputs", (3,), torch.float32)})
    assert form.by_phase(5, travelling=False) == {"outputs": 60}
    assert form.by_phase(5, travelling=True) == {"outputs": 64} == {"outputs": form.nbytes(5)}


def test_aligned_copies_only_what_is_off_a_cache_line():
    buffer = torch.arange(40.0)
    assert aligned(buffer).data_ptr() == buffer.data_ptr()
    moved = aligned(buffer[1:])
    assert moved.data_ptr() % ALIGNMENT == 0
    assert torch.equal(moved, buffer[1:])


# --------------------------------------------------------------------------------------------- waves


@examples(60)
@given(st.integers(7, 40), st.integers(1, 6), st.integers(1, 200_000), st.integers(0, 10))
def test_waves_cover_every_client_once_within_the_limit(clients, ranks, limit, seed):
    graph = Schedule(RegularTopology(kind="regular", degree=4), clients, seed).graph(0)
    rng = np.random.default_rng(seed)
    sizes, message = rng.integers(1, 50, clients), rng.integers(64, 4000, clients)
    placement = Placement(clients, ranks)
    waves = factored_waves(graph, placement, sizes, message, WORK, limit)
    assert len({len(own) for own in waves}) == 1, "every rank takes part in every wave"
    held = 4 * neighbourhood_sums(graph, message)
    most = WORK.one_client(int((neighbourhood_sums(graph, sizes) + sizes).max()))
    for rank, own in enumerate(waves):
        assert [c for wave in own for c in wave] == list(placement.owned(rank))
        for wave in own:
            assert len(wave) <= 1 or most + held[wave.start : wave.stop].sum() <= limit


def test_neighbourhood_sums_leave_the_client_out():
    graph = Graph.from_pairs(4, [(0, 1), (1, 2)])
    assert neighbourhood_sums(graph, np.array([1, 10, 100, 1000])).tolist() == [10, 101, 10, 0]


def test_slices_fit_the_limit_and_shrink_with_it():
    graph = Graph.from_pairs(3, [(0, 1), (1, 2)])
    sizes = np.array([5, 6, 7])
    smallest = smallest_limit(graph, sizes, None, WORK)
    widths = [slice_width(graph, sizes, WORK, smallest + extra) for extra in (0, 20_000, 10**9)]
    assert widths[0] == 1
    assert widths == sorted(widths)
    assert widths[-1] == WORK.params


def test_small_waves_give_the_same_bits():
    results = []
    for limit in (None, 1):
        federation = make_federation((6, 5, 3), (5, 3, 8, 4, 6, 7), torch.float32, limit)
        method = NtkDfl(NtkDflSettings(taus=(5, 20)), federation)
        graph = Schedule(RegularTopology(kind="regular", degree=3), 6, 0).graph(0)
        with Exchange(federation, graph) as exchange:
            results.append(method.round(random_weights(federation), 0, exchange).weights)
    assert torch.equal(*results)


# ---------------------------------------------------------------------------------------- reductions


@given(st.integers(1, 70), st.integers(0, 5), st.integers(-30, 30))
def test_mean_is_exact_and_knows_no_order(clients, seed, exponent):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.standard_normal((clients, 9)) * 2.0**exponent)
    mean = exact_mean(SoloWorld(), rows, clients)
    assert (mean - rows.mean(0)).abs().max() <= 4e-16 * rows.abs().max()
    shuffled = rows[torch.from_numpy(rng.permutation(clients))]
    assert torch.equal(exact_mean(SoloWorld(), shuffled, clients), mean)


def test_mean_of_zeros_and_of_equal_rows():
    assert torch.equal(exact_mean(SoloWorld(), torch.zeros(3, 2), 3), torch.zeros(2))
    row = torch.tensor([0.1, -3.0, 7e-5])
    assert torch.equal(exact_mean(SoloWorld(), row.repeat(5, 1), 5), row)


# ------------------------------------------------------------------------------------------ exchange


def test_average_weighs_as_told():
    federation = make_federation((6, 5, 3), (5, 3, 8, 4))
    weights = random_weights(federation)
    with Exchange(federation, Graph.from_pairs(4, [(0, 1), (0, 2)])) as exchange:
        plain = exchange.average(weights)
        by_samples = exchange.average(weights, "samples")
    torch.testing.assert_close(plain[0], weights[:3].mean(0))
    torch.testing.assert_close(by_samples[1], (5 * weights[0] + 3 * weights[1]) / 8)
    torch.testing.assert_close(plain[3], weights[3])


def test_equal_weights_average_to_themselves():
    federation = make_federation((6, 5, 3), (5, 3, 8, 4), torch.float32)
    weights = random_weights(federation)[:1].repeat(4, 1)
    with Exchange(federation, Graph.from_pairs(4, [(0, 1), (0, 2), (1, 2)])) as exchange:
        assert torch.equal(exchange.average(weights), weights)


def test_mean_over_all_clients_is_a_statistic():
    federation = make_federation((6, 5, 3), (5, 3, 8, 4))
    weights = random_weights(federation)
    torch.testing.assert_close(mean_over_clients(federation, weights), weights.mean(0))
    assert not federation.ledger.lap().any()


@pytest.mark.parametrize("kind", ["factored", "dense"])
def test_protocol_bytes_follow_from_the_graph(kind):
    federation = make_federation((6, 5, 3), (5, 3, 8, 4), torch.float32)
    graph = Graph.from_pairs(4, [(0, 1), (0, 2), (1, 2), (2, 3)])
    settings = NtkDflSettings(taus=(5,), jacobian=kind)
    with Exchange(federation, graph) as exchange:
        NtkDfl(settings, federation).round(random_weights(federation), 0, exchange)
    busiest = federation.ledger.busiest
    booked = dict(zip(TRAFFIC_PHASES, federation.ledger.lap().tolist()[0], strict=True))
    params, edges = federation.network.layout.size, 8
    rows = 2 * 5 + 2 * 3 + 3 * 8 + 1 * 4  # each client's samples to each of its neighbours
    assert booked["weights"] == booked["averages"] == edges * params * 4
    assert booked["jacobians"] == rows * (3 * params if kind == "dense" else 6 + 5) * 4
    assert booked["outputs"] == rows * 3 * 4
    assert booked["labels"] == rows * 4
    assert booked["inputs"] == (rows * 6 * 4 if kind == "dense" else 0)
    assert booked["statistics"] == 0
    # Client 2: two vectors and its 8 samples to three neighbours, the same and their 12 back.
    a_row = booked["jacobians"] + booked["outputs"] + booked["labels"] + booked["inputs"]
    assert busiest == 2 * 2 * 3 * params * 4 + (3 * 8 + 5 + 3 + 4) * a_row // rows
    assert federation.ledger.busiest == 0, "a lap starts anew"


def test_a_dense_jacobian_passes_twice_and_no_more():
    federation = make_federation((6, 5, 3), (5, 3), memory_limit=1)
    with Exchange(federation, Graph.from_pairs(2, [(0, 1)])) as exchange:
        hoods = exchange.neighbourhoods(random_weights(federation), "dense", inputs=False, taus=1)
        hood = next(hoods)
        kernel = hood.kernel()
        hood.transposed_product(torch.zeros(1, len(kernel), 3, dtype=kernel.dtype))
        with pytest.raises(RuntimeError, match="only 2 times"):
            hood.kernel()


def test_a_method_may_skip_a_neighbourhoods_passes():
    """The exchange then takes part on its own, or other ranks would wait for ever."""
    federation = make_federation((6, 5, 3), (5, 3), memory_limit=1)
    with Exchange(federation, Graph.from_pairs(2, [(0, 1)])) as exchange:
        hoods = exchange.neighbourhoods(random_weights(federation), "dense", inputs=True, taus=1)
        assert [hood.client for hood in hoods] == [0, 1]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([np.nan, 1, 2], np.nan),
        ([np.nan, np.inf, 2], np.nan),
        ([np.inf, 1, 2], np.inf),
        ([1, -np.inf, -np.inf], -np.inf),
        ([np.inf, 1, -np.inf], np.nan),
    ],
)
def test_a_mean_of_what_is_no_number(column, expected):
    """It is what addition makes of it; the finite entries beside it are as exact as ever."""
    finite = torch.tensor([0.1, -3.0, 7e-5], dtype=torch.float64)
    rows = torch.stack([torch.tensor(column, dtype=torch.float64), finite], dim=1)
    for order in ([0, 1, 2], [2, 0, 1]):
        mean = exact_mean(SoloWorld(), rows[order], 3)
        assert np.array_equal(mean[0].item(), expected, equal_nan=True)
        assert mean[1] == exact_mean(SoloWorld(), finite[:, None], 3)[0]
