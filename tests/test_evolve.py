"""The evolution against a slow independent integration and against closed forms.

Arrays are [sample, output]; errors of S are measured as the update feels them,
``sqrt(e^T K e / S^T K S)``.
"""

import functools
import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from mpi_ntkdfl.ntk import compiled, evolve_batch, factors, left_sums, scheme
from mpi_ntkdfl.ntk.evolve import DEFAULT_TOLERANCE, Evolution, Implementation, evolve
from mpi_ntkdfl.ntk.path import Constants, Ends, Path
from tests.conftest import needs_compiled, needs_cuda

Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LONG = (100, 200, 400, 600, 800)

each_implementation = pytest.mark.parametrize(
    "implementation", ["tensor", pytest.param("compiled", marks=needs_compiled)]
)


def make_problem(
    samples: int, outputs: int, top: float = 250.0, decay: float = 1.0, seed: int = 0
) -> Problem:
    """Kernel with eigenvalues ``N top k^-decay``, k = 1.., outputs f(0) and one-hot targets."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(samples, samples, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(square)[0]
    order = torch.arange(1, samples + 1, dtype=torch.float64)
    kernel = (vectors * (samples * top * order**-decay)) @ vectors.T
    initial = torch.randn(samples, outputs, generator=generator, dtype=torch.float64)
    labels = torch.randint(outputs, (samples,), generator=generator)
    return (kernel + kernel.T) / 2, initial, torch.eye(outputs, dtype=torch.float64)[labels]


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Computes a reference once for equal problems, because many cases are compared with it."""
    found: dict[object, Any] = {}

    @functools.wraps(function)
    def call(problem: Problem, *numbers: Any) -> Any:
        key = *(array.numpy().tobytes() for array in problem), *numbers
        if key not in found:
            found[key] = function(problem, *numbers)
        return found[key]

    return call


@once
def integrate(problem: Problem, lr: float, taus: Sequence[int], parts: int) -> list[Problem]:
    """Left sums and outputs by classical Runge-Kutta steps of 1 / parts, in float64.

    Four times finer up to u = 30, where the fast directions still move.

    Returns:
        (S(tau), f(tau), f(tau) - f(0)) for every tau.
    """
    kernel, initial, targets = problem
    matrix = -lr / kernel.shape[0] * kernel
    outputs, total, found = initial.clone(), torch.zeros_like(initial), []

    def slope(state: torch.Tensor) -> torch.Tensor:
        return matrix @ (torch.softmax(state, 1) - targets)

    for step in range(taus[-1]):
        total += torch.softmax(outputs, 1) - targets
        count = parts * (4 if step < 30 else 1)
        for _ in range(count):
            first = slope(outputs)
            second = slope(outputs + first / (2 * count))
            third = slope(outputs + second / (2 * count))
            fourth = slope(outputs + third / count)
            outputs = outputs + (first + 2 * second + 2 * third + fourth) / (6 * count)
        if step + 1 in taus:
            found.append((total.clone(), outputs, outputs - initial))
    return found


def update_error(kernel: torch.Tensor, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error of the update that S causes."""
    error = found.double() - expected
    return math.sqrt((error * (kernel @ error)).sum() / (expected * (kernel @ expected)).sum())


@once
def exact(problem: Problem, lr: float, taus: Sequence[int], tolerance: float = 1e-10) -> Evolution:
    """By the faster implementation there is; `integrate` holds both to the truth."""
    there = not isinstance(compiled.find(torch.float64), str)
    way: Implementation = "compiled" if there else "tensor"
    return evolve(*problem, lr, taus, tolerance=tolerance, implementation=way)


def errors(
    problem: Problem,
    lr: float,
    taus: Sequence[int],
    parts: int,
    implementation: Implementation,
    kind: torch.dtype = torch.float64,
    tolerance: float = DEFAULT_TOLERANCE,
) -> tuple[float, float]:
    """Largest errors over taus: of the update, and of f relative to its change."""
    kernel, initial, targets = (array.to(kind) for array in problem)
    result = evolve(
        *(kernel, initial, targets, lr, taus), tolerance=tolerance, implementation=implementation
    )
    assert result.taus == tuple(taus)
    assert result.residual_sums.dtype == result.outputs.dtype == kind
    updates, states = [], []
    for index, (total, outputs, change) in enumerate(integrate(problem, lr, taus, parts)):
        updates.append(update_error(problem[0], result.residual_sums[index], total))
        states.append(((result.outputs[index].double() - outputs).norm() / change.norm()).item())
    return max(updates), max(states)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@each_implementation
def test_long_evolution_keeps_the_default_bound(
    kind: torch.dtype, implementation: Implementation
) -> None:
    problem = make_problem(70, 10)
    update, outputs = errors(problem, 0.01, LONG, 4, implementation, kind)
    assert update <= DEFAULT_TOLERANCE
    assert outputs <= 1e-4


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.1])
@pytest.mark.parametrize("taus", [(1, 2, 5), (40,)])
@each_implementation
def test_few_steps_at_any_rate(
    kind: torch.dtype, lr: float, taus: tuple[int, ...], implementation: Implementation
) -> None:
    problem = make_problem(50, 3, seed=2)
    update, outputs = errors(problem, lr, taus, 25 if lr > 0.01 else 8, implementation, kind)
    assert update <= DEFAULT_TOLERANCE
    assert outputs <= 1e-4


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@each_implementation
def test_error_stays_below_the_tolerance(tolerance: float, implementation: Implementation) -> None:
    problem = make_problem(70, 4, decay=0.7, seed=3)
    update, _ = errors(problem, 0.01, (3, 20, 60), 16, implementation, tolerance=tolerance)
    assert update <= tolerance


@each_implementation
def test_flat_spectrum_beyond_the_factor(implementation: Implementation) -> None:
    """Most of K lies outside the factor: only the outer steps hold the bound."""
    problem = make_problem(80, 3, top=60.0, decay=0.1, seed=4)
    update, _ = errors(problem, 0.01, (30,), 16, implementation)
    assert update <= DEFAULT_TOLERANCE


@each_implementation
def test_intermediate_taus_do_not_change_the_last(implementation: Implementation) -> None:
    problem = make_problem(60, 5, seed=5)
    single = evolve(*problem, 0.01, (100,), implementation=implementation).residual_sums[0]
    among = evolve(*problem, 0.01, (1, 7, 50, 100), implementation=implementation).residual_sums[3]
    assert update_error(problem[0], single, among) <= 2 * DEFAULT_TOLERANCE


@each_implementation
def test_same_input_gives_the_same_bits_whatever_the_global_generator(
    implementation: Implementation,
) -> None:
    problem = make_problem(50, 4)
    torch.manual_seed(1)
    first = evolve(*problem, 0.01, (50,), implementation=implementation)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = evolve(*problem, 0.01, (50,), implementation=implementation)
    assert torch.equal(first.residual_sums, second.residual_sums)
    assert torch.equal(first.outputs, second.outputs)
    assert torch.equal(torch.get_rng_state(), state)


@each_implementation
def test_products_stay_few_on_a_decaying_spectrum(implementation: Implementation) -> None:
    kernel, outputs, targets = (array.float() for array in make_problem(400, 10, decay=1.3))
    result = evolve(kernel, outputs, targets, 0.01, LONG, implementation=implementation)
    assert result.products <= 200


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@each_implementation
def test_zero_kernel_moves_nothing(loss: str, implementation: Implementation) -> None:
    """An integer belongs to the step it begins, wherever the steps end."""
    _, outputs, targets = make_problem(6, 3)
    kernel, taus = torch.zeros(6, 6, dtype=torch.float64), (1, 2, 7, 30, 31, 99, 1_000_000)
    result = evolve(kernel, outputs, targets, 0.1, taus, loss, implementation=implementation)
    head = torch.softmax(outputs, 1) if loss == "cross-entropy" else outputs
    assert torch.allclose(result.outputs, outputs.expand(7, 6, 3), rtol=0, atol=1e-14)
    for tau, sums in zip(taus, result.residual_sums, strict=True):
        torch.testing.assert_close(sums, tau * (head - targets), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("outputs", [2, 7])
@each_implementation
def test_one_sample(outputs: int, implementation: Implementation) -> None:
    problem = make_problem(1, outputs, top=40.0)
    update, _ = errors(problem, 0.01, (1, 10, 90), 8, implementation)
    assert update <= DEFAULT_TOLERANCE


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [1e-3, 0.01])
def test_squared_loss_sums_the_flow(kind: torch.dtype, lr: float) -> None:
    """S(tau) is the plain sum of f(u) - Y with f(u) by the matrix exponential."""
    kernel, outputs, targets = make_problem(30, 3)
    kernel[:, 5] = kernel[5]  # keeps it symmetric; the next line makes a null direction
    kernel[5, :] = kernel[:, 5] = 0.0
    step = torch.linalg.matrix_exp(-lr / 30 * kernel)
    taus, state, total = (1, 2, 90), outputs, torch.zeros_like(outputs)
    result = evolve(kernel.to(kind), outputs.to(kind), targets.to(kind), lr, taus, "squared")
    bound = 1e-5 if kind == torch.float32 else 1e-11
    for tau in range(1, 91):
        total += state - targets
        state = targets + step @ (state - targets)
        if tau in taus:
            index = taus.index(tau)
            assert update_error(kernel, result.residual_sums[index], total) <= bound
            assert (result.outputs[index] - state).abs().max() <= 10 * bound


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (2.25, 9.5), (3.0, 40.0), (6.9, 7.01)])
def test_left_sum_is_exact_for_a_quintic_integral(start: float, end: float) -> None:
    z = (0.3, -1.0, 2.0, 0.7, -0.2, 0.05)

    def derivative(order: int, u: float) -> float:
        powers = range(order, 6)
        return sum(z[k] * math.perm(k, order) * (u - start) ** (k - order) for k in powers)

    ends = (torch.tensor([u], dtype=torch.float64) for u in (start, end))
    weights = left_sums.LeftSums(torch.device("cpu")).weights(*ends)[0].tolist()
    data = (
        derivative(0, end) - derivative(0, start),
        *(derivative(order, u) for order in (1, 2) for u in (start, end)),
    )
    expected = sum(derivative(1, u) for u in range(math.ceil(start), math.ceil(end)))
    result = sum(weight * value for weight, value in zip(weights, data, strict=True))
    scale = sum(abs(weight * value) for weight, value in zip(weights, data, strict=True))
    assert abs(result - expected) <= 1e-12 * scale


def test_no_integer_in_the_step_gives_no_left_sum() -> None:
    starts, ends = (
        torch.tensor(u, dtype=torch.float64) for u in ([4.1, 5.0, 3.0], [5.0, 5.5, 3.0])
    )
    weights = left_sums.LeftSums(torch.device("cpu")).weights(starts, ends)
    assert weights.abs().sum(1).gt(0).tolist() == [False, True, False]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_path_meets_values_and_slopes_at_the_ends_and_is_a_polynomial_in_the_logarithm(count):
    shift, initial = 3.0, torch.zeros(1, 2, dtype=torch.float64)
    powers = torch.arange(2 * count, dtype=torch.float64)[:, None]

    def slow(u: float) -> torch.Tensor:
        return (math.log(u + shift) ** powers * torch.tensor([1.0, -0.7])).sum(0)[None]

    def slope(u: float) -> torch.Tensor:
        terms = powers * math.log(u + shift) ** (powers - 1).clamp(min=0) / (u + shift)
        return (terms * torch.tensor([1.0, -0.7])).sum(0)[None]

    times = (9.0, 5.0, 2.0, 1.0)
    gains = [slow(at) - slow(before) for at, before in itertools.pairwise(times)]
    ends = Ends(
        torch.tensor([count]),
        torch.tensor(times[:3], dtype=torch.float64)[:, None],
        slow(times[0])[None],
        torch.stack(gains)[:, None],
        torch.stack([slope(at) for at in times[:3]])[:, None],
    )
    constants = Constants(torch.device("cpu"))
    path = Path(ends, initial[None], torch.tensor([shift], dtype=torch.float64), constants)
    for u in (*times[:count], 9.5, 14.0):
        value, derivative = path.along(torch.tensor([[u]], dtype=torch.float64))
        torch.testing.assert_close(value[0], -slow(u), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(derivative[0], -slope(u), rtol=1e-10, atol=1e-10)


def test_factor_takes_the_top_and_leaves_a_semidefinite_rest() -> None:
    kernel = make_problem(120, 2)[0]
    factor = factors.nystroem_factors(kernel[None])[0]
    rest = torch.linalg.eigvalsh(kernel - factor.T @ factor)
    values = torch.linalg.eigvalsh(kernel)
    assert factor.shape == (scheme.RANK, 120)
    assert rest[0] >= -1e-10 * values[-1]
    assert rest[-1] <= 2 * values[-scheme.RANK - 1]


def pair_error(step: float) -> float:
    """Error at u = 0.4 of the inner pair with fixed steps, all of K in the factor."""
    kernel, initial, targets = make_problem(5, 3, top=40.0)
    scale = torch.full((1, 1, 1), 0.05 / 5, dtype=torch.float64)
    arrays = (kernel.clone()[None], initial.T[None].contiguous(), targets.T[None].contiguous())
    system = evolve_batch._Lockstep(*arrays, scale, 1e-3)
    ends = Ends.start(torch.zeros_like(system.initial))
    path = Path(ends, system.initial, torch.ones(1, dtype=torch.float64), system.path_constants)
    state, length = system.state, torch.tensor([step], dtype=torch.float64)
    for index in range(round(0.4 / step)):
        residual = torch.sub(state.probability, system.targets, out=system.residuals[0])
        torch.bmm(residual, system.transposed, out=system.rates[0])
        state, _ = system._stages(state, path, index * length, length)
    expected = integrate((kernel, initial, targets), 0.05 * 0.4, (1,), 100)[0][1].T
    return float((state.outputs[0] - expected).norm())


def test_inner_pair_has_order_four() -> None:
    coarse, fine = pair_error(0.1), pair_error(0.05)
    assert 12 <= coarse / fine <= 24


def test_inner_pair_meets_its_order_conditions() -> None:
    """Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.2."""
    matrix = torch.zeros(7, 7, dtype=torch.float64)
    for index, row in enumerate(scheme.STAGES, 1):
        matrix[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
    nodes, last = matrix.sum(1), matrix[-1]
    turned = matrix @ nodes
    conditions = [
        *((torch.ones(7), 1), (nodes, 1 / 2), (nodes**2, 1 / 3), (turned, 1 / 6)),
        *((nodes**3, 1 / 4), (nodes * turned, 1 / 8)),
        *((matrix @ nodes**2, 1 / 12), (matrix @ turned, 1 / 24)),
    ]
    for vector, value in conditions:
        assert float(last @ vector.double()) == pytest.approx(value, abs=1e-14)
    difference = torch.tensor(scheme.ERROR, dtype=torch.float64)
    for vector, _ in conditions[:4]:
        assert float(difference @ vector.double()) == pytest.approx(0.0, abs=1e-14)


def test_inner_pair_is_stable_at_its_step_bound() -> None:
    """|P(-x)| < 1 up to the bound with its margin for the power iteration."""
    for point in torch.linspace(0.05, 1.3 * scheme.STABLE, 60).tolist():
        slopes = [1.0]
        for row in scheme.STAGES:
            stage = 1.0 - point * sum(a * k for a, k in zip(row, slopes, strict=True))
            slopes.append(stage)
        assert abs(slopes[-1]) < 1.0


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_input_that_is_not_finite_raises(which: int, value: float, loss: str) -> None:
    arrays = list(make_problem(8, 3))
    arrays[which][2, 1] = value
    with pytest.raises(ArithmeticError, match="not finite"):
        evolve(arrays[0], arrays[1], arrays[2], 0.01, (10,), loss)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@each_implementation
def test_the_largest_numbers(kind: torch.dtype, implementation: Implementation) -> None:
    """A kernel whose products overflow raises; outputs beside which nothing moves keep their residual."""
    kernel, initial, targets = (array.to(kind) for array in make_problem(8, 3))
    top = torch.finfo(kind).max / 4
    with pytest.raises(ArithmeticError):
        evolve(
            *(kernel / kernel.abs().max() * 4 * top, initial, targets, 0.1, (10,)),
            implementation=implementation,
        )
    large = initial / initial.abs().max() * top
    result = evolve(kernel, large, targets, 0.1, (10,), implementation=implementation)
    expected = 10 * (torch.softmax(large, 1) - targets)
    torch.testing.assert_close(result.residual_sums[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e4])
@each_implementation
def test_small_and_large_numbers_keep_the_bound(
    scale: float, implementation: Implementation
) -> None:
    kernel, initial, targets = make_problem(9, 3, top=30.0)
    problem = (kernel, initial * scale, targets)
    update, _ = errors(problem, 0.01, (1, 20), 16, implementation, torch.float32)
    assert update <= DEFAULT_TOLERANCE


@each_implementation
def test_a_kernel_that_moves_nothing_measurable(implementation: Implementation) -> None:
    """f changes by less than its rounding, so the size of the update shows in F z only."""
    kernel, initial, targets = (array.float() for array in make_problem(9, 3))
    result = evolve(kernel * 1e-14, initial, targets, 0.01, (20,), implementation=implementation)
    expected = 20 * (torch.softmax(initial, 1) - targets)
    torch.testing.assert_close(result.residual_sums[0], expected, rtol=1e-5, atol=1e-5)


@each_implementation
def test_an_evolution_without_end_is_given_up(
    implementation: Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(60, 5)
    monkeypatch.setattr(scheme, "MOST_TRIALS", 20)
    compiled._scheme.cache_clear()
    with pytest.raises(ArithmeticError, match="not done after 20 inner steps, at u = "):
        evolve(*problem, 0.01, LONG, implementation=implementation)
    compiled._scheme.cache_clear()


# ------------------------------------------------------------------------------ the compiled version


@needs_compiled
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("samples", "outputs"), [(1, 2), (63, 3), (64, 4), (65, 5), (150, 10), (130, 16), (3, 300)]
)
def test_every_build_gives_the_same_bits(kind: torch.dtype, samples: int, outputs: int) -> None:
    """Whatever the width of its vectors, and with rows of any number left over."""
    arrays = [array.to(kind) for array in make_problem(samples, outputs)]
    able = compiled.builds(kind)
    results = [build.evolve(*arrays, 0.01, (1, 30, 120), DEFAULT_TOLERANCE) for build in able]
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])
    problem = make_problem(samples, outputs)
    for sums, expected in zip(
        results[0][0], exact(problem, 0.01, (1, 30, 120), 1e-8).residual_sums, strict=True
    ):
        assert update_error(problem[0], sums, expected) <= DEFAULT_TOLERANCE


def test_without_a_build_the_reason_is_told(elsewhere: FilePath) -> None:
    problem = make_problem(5, 3)
    with pytest.raises(ValueError, match="no compiled evolution: it was not built"):
        evolve(*problem, 0.01, (3,), implementation="compiled")
    (elsewhere / "_evolve_float64_v3.so").write_text("no library")
    compiled.find.cache_clear()
    with pytest.raises(ValueError, match="no build in .* runs on this processor"):
        evolve(*problem, 0.01, (3,), implementation="compiled")


@needs_compiled
def test_a_build_of_other_numbers_is_refused(elsewhere: FilePath) -> None:
    """The check at the first use: float32's build in float64's place."""
    for path in FilePath(compiled.__file__).parent.glob("_evolve_float32_*.so"):
        shutil.copy(path, elsewhere / path.name.replace("float32", "float64"))
    assert "in a small problem" in str(compiled.find(torch.float64)) or "fails here" in str(
        compiled.find(torch.float64)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": torch.zeros(8, 7)}, r"expected kernel \(8, 8\), got \(8, 7\)"),
        ({"targets": torch.zeros(8, 2)}, r"expected targets \(8, 3\), got \(8, 2\)"),
        ({"outputs": torch.zeros(8, 1)}, r"expected outputs .* got \(8, 1\)"),
        (
            {"kernel": torch.zeros(8, 8).half()},
            "expected kernel torch.float32 .* got torch.float16",
        ),
        ({"lr": 0.0}, "expected lr positive and finite, got 0.0"),
        ({"lr": math.nan}, "expected lr positive and finite, got nan"),
        ({"tolerance": -1.0}, "expected tolerance positive and finite, got -1.0"),
        ({"taus": []}, "expected positive ascending taus"),
        ({"taus": [0, 3]}, "expected positive ascending taus"),
        ({"taus": [5, 5]}, "expected positive ascending taus"),
        ({"loss": "hinge"}, 'expected loss "cross-entropy" or "squared", got \'hinge\''),
    ],
)
def test_misfits_are_named(change: dict[str, object], message: str) -> None:
    kernel, outputs, targets = (array.float() for array in make_problem(8, 3))
    good = {"kernel": kernel, "outputs": outputs, "targets": targets, "lr": 0.01, "taus": [3]}
    with pytest.raises(ValueError, match=message):
        evolve(**{**good, **change})  # type: ignore[arg-type]


@needs_cuda
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_cuda_agrees_with_the_cpu(loss: str) -> None:
    problem = make_problem(200, 10)
    here = evolve(*problem, 0.01, LONG, loss)
    kernel, outputs, targets = (array.cuda() for array in problem)
    there = evolve(kernel, outputs, targets, 0.01, LONG, loss)
    assert there.residual_sums.device.type == there.outputs.device.type == "cuda"
    for index in range(len(LONG)):
        found, expected = there.residual_sums[index].cpu(), here.residual_sums[index]
        assert update_error(problem[0], found, expected) <= DEFAULT_TOLERANCE
