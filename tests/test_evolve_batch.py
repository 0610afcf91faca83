"""Evolution of several clients at once: as one after another, whoever they share a batch with."""

import dataclasses
import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.ntk import evolve_batch as module
from mpi_ntkdfl.ntk.evolve import DEFAULT_TOLERANCE
from mpi_ntkdfl.ntk.evolve_batch import BatchEvolution, evolve_batch
from mpi_ntkdfl.topology.graphs import Graph
from tests.conftest import make_federation, random_weights
from tests.test_evolve import Problem, exact, make_problem, update_error

TAUS = (1, 7, 30, 60)
OUTPUTS = 4
SIZES = (60, 45, 20, 33)


def problems() -> list[Problem]:
    """Kernels stiff and mild, of different sizes."""
    tops = (250.0, 20.0, 100.0, 1.0)
    return [
        make_problem(n, OUTPUTS, top, seed=k)
        for k, (n, top) in enumerate(zip(SIZES, tops, strict=True))
    ]


def together(
    clients: list[Problem], tolerance: float, kind: torch.dtype = torch.float64
) -> BatchEvolution:
    """Pads the clients and evolves them as one batch."""
    sizes = [len(outputs) for _, outputs, _ in clients]
    kernels = torch.zeros(len(sizes), max(sizes), max(sizes), dtype=kind)
    outputs = torch.zeros(len(sizes), max(sizes), OUTPUTS, dtype=kind)
    targets = torch.zeros_like(outputs)
    for place, (n, (kernel, initial, target)) in enumerate(zip(sizes, clients, strict=True)):
        kernels[place, :n, :n], outputs[place, :n], targets[place, :n] = kernel, initial, target
    return evolve_batch(kernels, outputs, targets, sizes, 0.01, TAUS, tolerance)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_every_client_keeps_the_tolerance(tolerance: float) -> None:
    clients = problems()
    found = together(clients, tolerance)
    assert found.failures == [""] * 4
    for place, problem in enumerate(clients):
        expected = exact(problem, 0.01, TAUS)
        n = SIZES[place]
        for index in range(len(TAUS)):
            sums = found.residual_sums[place, index, :n]
            assert update_error(problem[0], sums, expected.residual_sums[index]) <= tolerance
            change = (expected.outputs[index] - problem[1]).norm()
            missed = (found.outputs[place, index, :n] - expected.outputs[index]).norm()
            assert missed <= 10 * tolerance * change
        assert found.residual_sums[place, :, n:].count_nonzero() == 0


def test_in_float32_as_one_alone() -> None:
    clients = problems()
    found = together(clients, DEFAULT_TOLERANCE, torch.float32)
    for place, problem in enumerate(clients):
        expected = exact(problem, 0.01, TAUS).residual_sums[-1]
        sums = found.residual_sums[place, -1, : SIZES[place]]
        assert update_error(problem[0], sums, expected) <= DEFAULT_TOLERANCE


def test_company_does_not_matter() -> None:
    """Step sizes and ends are a client's own: only rounding may show the others."""
    clients = problems()
    alone, among = together(clients[1:2], 1e-4), together(clients, 1e-4)
    apart = alone.residual_sums[0] - among.residual_sums[1, :, : SIZES[1]]
    assert apart.norm() <= 1e-9 * alone.residual_sums.norm()


def test_a_client_that_fails_fails_alone() -> None:
    clients = problems()
    sound = together(clients, 1e-5)
    clients[2] = (clients[2][0] * torch.inf, *clients[2][1:])
    clients[3] = (clients[3][0], clients[3][1] * torch.nan, clients[3][2])
    found = together(clients, 1e-5)
    assert list(map(bool, found.failures)) == [False, False, True, True]
    assert torch.allclose(found.residual_sums[:2], sound.residual_sums[:2], rtol=1e-9)


@pytest.mark.parametrize("rank", [0, 2])
def test_kernels_of_low_rank(rank: int) -> None:
    """Where nothing moves, S(tau) is tau times the residual."""
    _, initial, targets = make_problem(30, OUTPUTS)
    rows = make_problem(30, OUTPUTS, seed=9)[0][:, :rank] / 30
    kernel = rows @ rows.T
    found = together([(kernel, initial, targets)], 1e-6).residual_sums[0]
    expected = exact((kernel, initial, targets), 0.01, TAUS).residual_sums
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    if rank == 0:
        assert torch.allclose(found[-1], TAUS[-1] * (torch.softmax(initial, 1) - targets))


def test_refuses_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected kernels \(1, 3, 3\)"):
        evolve_batch(torch.zeros(1, 3, 2), *[torch.zeros(1, 3, 2)] * 2, [3], 0.1, (1,), 1e-3)


class Operations(TorchDispatchMode):
    """Counts operations, and those in which the host waits for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.all += 1
        self.waits += "_local_scalar_dense" in str(function) or "lift_fresh" in str(function)
        return function(*args, **(kwargs or {}))


def test_neither_operations_nor_waiting_grow_with_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is told, and how often the host waits for it, is by step, not by client."""
    steps = 0
    attempt, stages = module._Lockstep._attempt, module._Lockstep._stages

    def counted(function):
        def call(*args):
            nonlocal steps
            steps += 1
            return function(*args)

        return call

    monkeypatch.setattr(module._Lockstep, "_attempt", counted(attempt))
    monkeypatch.setattr(module._Lockstep, "_stages", counted(stages))
    counts = []
    for copies in (1, 4):
        steps = 0
        with Operations() as seen:
            together(problems()[:1] * copies, 1e-4)
        # A flag before each inner step, one that ends them, one before each outer step.
        assert seen.waits <= 2 * steps + 30
        counts.append((steps, seen.all - 20 * copies))
    assert counts[0][0] == counts[1][0]
    assert counts[1][1] <= counts[0][1]


# ------------------------------------------------------------------------------------- in a method

PATH = Graph.from_pairs(6, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)])


@functools.cache
def one_round(batch: int | None, poisoned: bool = False, **settings: object):
    """Weights and taus after a round of NTK-DFL in which `batch` of 6 clients evolve together."""
    federation = make_federation((5, 4, 3), [3, 4, 5, 6, 2, 3])
    federation = dataclasses.replace(
        federation, batch=batch, on_divergence="continue", evolution="tensor"
    )
    if poisoned:
        federation.samples[5].inputs[0, 0] = torch.inf
    method = METHODS["ntk-dfl"](
        METHODS["ntk-dfl"].Settings(taus=[2, 40], tolerance=1e-9, **settings), federation
    )
    with Exchange(federation, PATH) as exchange:
        result = method.round(random_weights(federation), 0, exchange)
    return result.weights, result.taus


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "squared"},
        {"jacobian": "dense"},
        {"jacobian": "inputs"},
        {"selection": "linearised"},
    ],
)
@pytest.mark.parametrize("batch", [4, 100])
def test_a_round_is_the_same(batch: int, settings: dict[str, str]) -> None:
    weights, taus = one_round(batch, **settings)
    expected, chosen = one_round(None, **settings)
    assert taus == chosen
    assert torch.allclose(weights, expected, rtol=0, atol=1e-9 * math.sqrt(expected.numel()))


def test_only_the_diverged_take_no_step(caplog: pytest.LogCaptureFixture) -> None:
    weights, taus = one_round(3, poisoned=True)
    assert [tau > 0 for tau in taus] == [True] * 4 + [False] * 2
    assert torch.isfinite(weights).all()
    assert caplog.text.count("no step is taken") == 2


def test_how_many_evolve_together() -> None:
    def at_once(**changes: object) -> int:
        federation = dataclasses.replace(make_federation((5, 4, 3), [3] * 6), **changes)
        with Exchange(federation, PATH) as exchange:
            return exchange.at_once(taus=2)

    assert at_once() == 1
    assert at_once(batch=7) == 7
    assert at_once(batch=3, batch_bytes=2**30) == 3
    assert at_once(batch_bytes=2**60) == 512
    some = at_once(batch_bytes=2**22)
    assert 2 <= some < 512
    assert at_once(batch_bytes=2**60, memory_limit=2**23) == some
