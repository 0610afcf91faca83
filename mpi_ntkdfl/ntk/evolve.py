"""Evolution of one client's network outputs under its neural tangent kernel.

Notation.  Public arrays are [sample, output] (N samples, C outputs) and the kernel is
[sample, sample]; the integration works on [output, sample].  Time ``u`` is counted in gradient
steps: ``tau`` steps of rate ``lr`` reach ``t = tau * lr``.  With outputs ``f``, one-hot targets
``Y``, c = lr / N and the residual ``g``,

    df/du = -c K g(f),    g(f) = softmax(f) - Y   or   f - Y,

and the weight update after ``tau`` steps is linear in the left sum (Thompson, Yue, Wong, Dai,
"NTK-DFL: Enhancing Decentralized Federated Learning in Heterogeneous Settings via Neural
Tangent Kernel", ICML 2025)

    S(tau) = sum_{u=0}^{tau-1} g(f(u)).

The squared loss has a closed form in the eigenbasis of K.

Cross-entropy.  With the integral ``z(u) = int_0^u g`` the outputs are ``f = f(0) - c K z``.
A few directions carry most of K: a Nystroem factor F [rank, sample] (Halko, Martinsson, Tropp,
SIAM Review 53, 2011) splits ``K = F^T F + K'`` with K' positive semidefinite and small, hence

    f = f(0) - c F^T a - R,    a = F z  (fast, rank numbers an output),    R = c K' z  (slow).

* Outer steps.  R and R' = c K' g are computed at the ends of the outer steps, by one product of
  K' with [z, g], and extrapolated over the next step by the polynomial in log(u + shift) that
  matches both at the last three ends: residuals decay on ever longer scales, on which a
  polynomial in u reaches half as far.  The difference from the R computed afterwards controls
  the step.
* Inner steps.  Along that path, a and z are integrated by an explicit Runge-Kutta pair that
  touches F and not K.  The fast directions soon follow the slow ones and the steps are bound by
  stability, so the pair, of order 4 in six stages, is stable to -9.7 on the negative axis, three
  times as far as that of Dormand and Prince.
* Left sums.  On every inner step the quintic that matches z, z' = g and z'' at both ends is
  differentiated and summed over the integers inside the step; on long steps this is the
  Euler-Maclaurin formula.

Any F gives the right answer, as K' enters by its exact products; F decides the cost alone.

Error measure.  An error ``e`` of S moves the update by ``J^T e``, of squared norm ``e^T K e``;
for S itself this is ``<z, f(0) - f> / c``, which costs no product.  In this norm the flow is
contractive, so the errors of the steps at most add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from mpi_ntkdfl.ntk import scheme
from mpi_ntkdfl.ntk.path import End, Path

DEFAULT_TOLERANCE = 1e-5
"""Bound on the relative error of the weight update."""


@dataclass(frozen=True)
class Evolution:
    """Residual sums and outputs at the requested numbers of steps.

    Attributes:
        taus: numbers of steps, ascending.
        residual_sums: S(tau) [tau, sample, output].
        outputs: f(tau * lr) [tau, sample, output].
        products: kernel products spent, counted in columns of the other factor over C; 0 for
            the squared loss, which takes an eigendecomposition instead.
    """

    taus: tuple[int, ...]
    residual_sums: torch.Tensor
    outputs: torch.Tensor
    products: int


def evolve(
    kernel: torch.Tensor,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    taus: Sequence[int],
    loss: str = "cross-entropy",
    tolerance: float = DEFAULT_TOLERANCE,
    overwrite: bool = False,
) -> Evolution:
    """Evolve the outputs and sum the residuals over the first tau steps.

    Args:
        kernel: K [sample, sample], symmetric positive semidefinite, float32 or float64.
        outputs: f(0) [sample, output].
        targets: one-hot Y [sample, output].
        lr: learning rate, positive.
        taus: numbers of steps, positive and ascending.
        loss: "cross-entropy" or "squared".
        tolerance: bound aimed at for the error of the update relative to the update,
            ``sqrt(e^T K e / S^T K S)`` with e the error of S.  Rounding sets a floor of a few
            1e-6 in float32 and 1e-13 in float64.  The squared loss is exact to rounding.
        overwrite: whether the kernel's memory may be used, which spares another of its size.

    Returns:
        The evolution, in the type and on the device of the inputs.

    Raises:
        ValueError: on a shape, type, loss or number that does not fit.
        ArithmeticError: if a value turns non-finite or the step size collapses.
    """
    marks = _check_numbers(lr, taus, tolerance)
    _check_arrays(kernel, outputs, targets)
    if loss == "squared":
        return _evolve_squared(kernel, outputs, targets, lr, marks)
    if loss == "cross-entropy":
        return _Multirate(kernel, outputs, targets, lr, tolerance, overwrite).run(marks)
    raise ValueError(f'expected loss "cross-entropy" or "squared", got {loss!r}')


def _check_arrays(kernel: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Check shapes, types, devices and values.

    Raises:
        ValueError: naming what was expected and what was given.
        ArithmeticError: if a value is not finite.
    """
    if outputs.ndim != 2 or outputs.shape[0] < 1 or outputs.shape[1] < 2:
        raise ValueError(f"expected outputs [N >= 1, C >= 2], got {tuple(outputs.shape)}")
    if outputs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected float32 or float64 outputs, got {outputs.dtype}")
    square = (outputs.shape[0], outputs.shape[0])
    wanted = f"{outputs.dtype} on {outputs.device}"
    for name, array, shape in (
        ("outputs", outputs, tuple(outputs.shape)),
        ("kernel", kernel, square),
        ("targets", targets, tuple(outputs.shape)),
    ):
        if tuple(array.shape) != shape:
            raise ValueError(f"expected {name} {shape}, got {tuple(array.shape)}")
        if (array.dtype, array.device) != (outputs.dtype, outputs.device):
            raise ValueError(f"expected {name} {wanted}, got {array.dtype} on {array.device}")
        # Both extremes are NaN if any value is; one pass, no temporary of the kernel's size.
        if not torch.stack(torch.aminmax(array)).isfinite().all():
            raise ArithmeticError(f"{name} holds a value that is not finite")


def _check_numbers(lr: float, taus: Sequence[int], tolerance: float) -> tuple[int, ...]:
    """Return taus as a tuple.

    Raises:
        ValueError: naming what was expected and what was given.
    """
    for name, value in (("lr", lr), ("tolerance", tolerance)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"expected {name} positive and finite, got {value}")
    marks = tuple(int(tau) for tau in taus)
    if not marks or any(a >= b for a, b in zip((0, *marks), marks, strict=False)):
        raise ValueError(f"expected positive ascending taus, got {list(taus)}")
    return marks


def _evolve_squared(
    kernel: torch.Tensor,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    taus: tuple[int, ...],
) -> Evolution:
    """Closed form for the squared loss.

    With K = Q diag(lambda) Q^T and a = lambda lr / N,
    ``f(tau) = Y + Q diag(e^{-a tau}) Q^T (f0 - Y)`` and
    ``S(tau) = Q diag((1 - e^{-a tau}) / (1 - e^{-a})) Q^T (f0 - Y)``.

    In float64 throughout: an eigenvalue found in float32 is off by 1e-7 of the largest one,
    and small eigenvalues enter S multiplied by tau^2.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    rate = values.clamp(min=0.0) * (lr / kernel.shape[0])
    residual = vectors.T @ (outputs - targets).double()
    sums, states = [], []
    for tau in taus:
        ratio = torch.expm1(-rate * tau) / torch.expm1(-rate)
        ratio = torch.where(rate > 0, ratio, float(tau))
        sums.append(vectors @ (ratio[:, None] * residual))
        states.append(targets + vectors @ (torch.exp(-rate * tau)[:, None] * residual))
    kind = outputs.dtype
    return Evolution(taus, torch.stack(sums).to(kind), torch.stack(states).to(kind), products=0)


def _left_sum_weights(start: float, end: float) -> tuple[float, ...] | None:
    """Weights that turn end values of a step into the left sum of g over it.

    p is the quintic with p, p', p'' equal to z, g, g' at both ends of [start, end].
    The sum of p'(u) over the integers u in [start, end) is

        w0 (z1 - z0) + w1 g0 + w2 g1 + w3 g0' + w4 g1'.

    Returns:
        (w0, ..., w4), or None if no integer lies in the step.
    """
    first, beyond, step = math.ceil(start), math.ceil(end), end - start
    if first == beyond:
        return None
    theta = [(u - start) / step for u in range(first, beyond)]
    m0, m1, m2, m3, m4 = (math.fsum(x**k for x in theta) for k in range(5))
    return (
        30 * (m2 - 2 * m3 + m4) / step,
        m0 - 18 * m2 + 32 * m3 - 15 * m4,
        -12 * m2 + 28 * m3 - 15 * m4,
        step * (m1 - 4.5 * m2 + 6 * m3 - 2.5 * m4),
        step * (1.5 * m2 - 4 * m3 + 2.5 * m4),
    )


def _nystroem_factor(kernel: torch.Tensor) -> torch.Tensor:
    """Factor F [rank, sample] with F^T F <= K close to K on its leading eigenvectors.

    With an orthonormal basis B of a subspace iteration, F^T F = K B^T (B K B^T)^+ B K.  The
    start is a fixed function of N.

    Raises:
        ArithmeticError: if a product with the kernel overflows.
    """
    basis = scheme.start(kernel.shape[0], kernel)
    for _ in range(scheme.PASSES):
        basis = torch.linalg.qr((basis @ kernel).T)[0].T.contiguous()
    image = basis @ kernel
    small = (image @ basis.T).double()
    if not small.isfinite().all():
        raise ArithmeticError("a product with the kernel is not finite")
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    # Directions that rounding may have turned would make K' indefinite; K' keeps them instead.
    keep = values > max(1e-5 * values[-1].item(), 0.0)
    weights = (vectors[:, keep] / values[keep].sqrt()).T
    factor: torch.Tensor = weights.to(kernel.dtype) @ image
    return factor


def _jacobian(probability: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return (diag(p) - p p^T) direction for every sample, all [output, sample]."""
    weighted = probability * direction
    return torch.addcmul(weighted, probability, weighted.sum(0), value=-1)


def _factor(error: float, order: float) -> float:
    """Return by how much the next step may be larger than the last, given its error."""
    if not math.isfinite(error):
        return scheme.SHRINK
    return min(
        scheme.GROW, max(scheme.SHRINK, scheme.SAFETY * math.pow(max(error, 1e-10), -1.0 / order))
    )


def _share(left: float, step: float) -> float:
    """Step to take: an equal share near the end of the way, which avoids a tiny last step."""
    if left >= 2 * step:
        return step
    return left / math.ceil(left / step - 1e-9) if left > step else left


def _after(step: float, trial: float, factor: float) -> float:
    """Step size after an accepted trial, which may have been cut short to meet an end."""
    return max(step, trial * factor) if trial < step else trial * factor


def _require_progress(step: float, now: float) -> None:
    """Raise ArithmeticError if the step no longer moves u."""
    if not step > 1e-12 * max(1.0, now):
        raise ArithmeticError(f"the step size collapsed at u = {now:g}")


@dataclass(frozen=True)
class _State:
    """z [output, sample], a = F z [output, rank], f and softmax(f) [output, sample]."""

    integral: torch.Tensor
    fast: torch.Tensor
    outputs: torch.Tensor
    probability: torch.Tensor


class _FastFlow:
    """Integration of a and z along a given slow path."""

    def __init__(
        self,
        factor: torch.Tensor,
        initial: torch.Tensor,
        targets: torch.Tensor,
        scale: float,
        bound: float,
    ) -> None:
        """Allocate the stages.

        Args:
            factor: F [rank, sample].
            initial: f(0) [output, sample].
            targets: Y [output, sample].
            scale: c = lr / N.
            bound: local bound of the relative error.
        """
        self.factor, self.transposed = factor, factor.T.contiguous()
        self.initial, self.targets, self.scale, self.bound = initial, targets, scale, bound
        outputs, rank = initial.shape[0], factor.shape[0]
        self.residuals = initial.new_empty(len(scheme.STAGES) + 1, *initial.shape)
        self.rates = initial.new_empty(len(scheme.STAGES) + 1, outputs, rank)
        # Views for every stage, made once: they take as long as the small products.
        self.rows = [initial.new_tensor(row) for row in scheme.STAGES]
        self.known = [self.rates[:stage].flatten(1).T for stage in range(1, len(scheme.STAGES) + 1)]
        self.slopes = self.residuals[:-1].flatten(1).T
        self.stages = list(zip(self.residuals[1:], self.rates[1:], strict=True))
        self.error_row = initial.new_tensor(scheme.ERROR)
        self.step, self.longest = math.inf, math.inf
        self.direction: torch.Tensor | None = None

    def limit_step(self, state: _State, iterations: int) -> None:
        """Bound the step by the spectral radius of the fast Jacobian c F H F^T.

        Power iteration, continued from call to call; the matrix is symmetric, so every iterate
        bounds the radius from below.
        """
        direction = self.direction
        if direction is None:
            direction = (state.probability - self.targets) @ self.transposed
        for _ in range(iterations):
            turned = _jacobian(state.probability, direction @ self.factor)
            image = self.scale * (turned @ self.transposed)
            radius = image.norm() / direction.norm()
            direction = image / image.norm()
        value = radius.item()
        # 0 / 0 where nothing moves: start anew the next time.
        moves = value > 0.0
        self.direction = direction if moves else None
        self.longest = scheme.STABLE / value if moves else math.inf

    def run(
        self,
        state: _State,
        path: Path,
        start: float,
        end: float,
        sums: torch.Tensor,
    ) -> _State:
        """Integrate from start to end and add the left sums of g to sums in place.

        Args:
            state: state at start.
            path: of f(0) - R.
            start: u of the start.
            end: u of the end.
            sums: [output, sample].

        Returns:
            The state at end on the given path.
        """
        torch.sub(state.probability, self.targets, out=self.residuals[0])
        torch.mm(self.residuals[0], self.transposed, out=self.rates[0])
        now = start
        curvature = self._curvature(state, path.evaluate((start, 1))[0], self.rates[0])
        while True:
            left = end - now
            trial = _share(left, min(self.step, self.longest))
            stages = [(now + math.fsum(row) * trial, 0) for row in scheme.STAGES]
            fields = path.evaluate(*stages, (now + trial, 1))
            after = self._stages(state, fields, trial)
            error = self._error(after, trial)
            if not error <= 1.0:
                self.step = trial * _factor(error, scheme.INNER_ORDER)
                _require_progress(self.step, now)
                continue
            self.step = _after(self.step, trial, _factor(error, scheme.INNER_ORDER))
            end_curvature = self._curvature(after, fields[-1], self.rates[-1])
            ends = (state.integral, after.integral, curvature, end_curvature)
            # Not now + trial, which may round across an integer end and count it twice.
            reached = end if trial == left else now + trial
            self._add_left_sum(sums, now, reached, ends)
            self.residuals[0], self.rates[0] = self.residuals[-1], self.rates[-1]
            state, curvature, now = after, end_curvature, reached
            if trial == left:
                return state

    def _stages(self, state: _State, fields: torch.Tensor, step: float) -> _State:
        """Run the stages of one step; return the state at its end."""
        origin, shape = state.fast.flatten(), state.fast.shape
        for (residual, rate), row, known, field in zip(
            self.stages, self.rows, self.known, fields[:-1], strict=True
        ):
            fast = torch.addmv(origin, known, row, alpha=step).view(shape)
            outputs = torch.addmm(field, fast, self.factor, alpha=-self.scale)
            probability = torch.softmax(outputs, 0)
            torch.sub(probability, self.targets, out=residual)
            torch.mm(residual, self.transposed, out=rate)
        integral = torch.addmv(state.integral.flatten(), self.slopes, self.rows[-1], alpha=step)
        return _State(integral.view_as(outputs), fast, outputs, probability)

    def _error(self, after: _State, step: float) -> float:
        """Estimated local error over its bound; F^T F stands for K in the norm."""
        fast = step * (self.error_row @ self.rates.flatten(1))
        change = (self.initial - after.outputs).flatten()
        size = torch.dot(after.integral.flatten(), change) / self.scale
        return _relative(torch.dot(fast, fast), size) / self.bound

    def _curvature(self, state: _State, slow: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """dg/du [output, sample], given the slow part of df/du and da/du."""
        slope = torch.addmm(slow, rate, self.factor, alpha=-self.scale)
        return _jacobian(state.probability, slope)

    def _add_left_sum(
        self, sums: torch.Tensor, start: float, end: float, ends: tuple[torch.Tensor, ...]
    ) -> None:
        """Add the sum of g over the integers in [start, end)."""
        weights = _left_sum_weights(start, end)
        if weights is None:
            return
        before, after, *curvatures = ends
        terms = (after - before, self.residuals[0], self.residuals[-1], *curvatures)
        for weight, term in zip(weights, terms, strict=True):
            sums.add_(term, alpha=weight)


def _relative(square: torch.Tensor, size: torch.Tensor) -> float:
    """sqrt(square / size) of two scalars, 0 where both vanish; one transfer to the host."""
    numerator, denominator = torch.stack([square, size]).abs().tolist()
    if numerator == 0.0:
        return 0.0
    return math.sqrt(numerator / denominator) if denominator > 0.0 else math.inf


class _Multirate:
    """Outer steps: the slow part R at the ends, and its extrapolation."""

    def __init__(
        self,
        kernel: torch.Tensor,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        lr: float,
        tolerance: float,
        overwrite: bool = False,
    ) -> None:
        """Split the kernel and start at u = 0 with z = 0, S = 0 and R = 0."""
        self.scale = lr / kernel.shape[0]
        self.initial, self.targets = outputs.T.contiguous(), targets.T.contiguous()
        reachable = max(tolerance, 4 * torch.finfo(outputs.dtype).eps)
        self.bound = scheme.OUTER_FRACTION * reachable
        factor = _nystroem_factor(kernel)
        # Formed once: products with K less products with F^T F would lose two digits each time.
        room = kernel if overwrite else None
        self.rest = torch.addmm(kernel, factor.T, factor, alpha=-1.0, out=room)
        inner = scheme.INNER_FRACTION * reachable
        self.flow = _FastFlow(factor, self.initial, self.targets, self.scale, inner)
        self.columns = (scheme.PASSES + 1) * min(scheme.RANK, kernel.shape[0])
        zero = torch.zeros_like(self.initial)
        fast = zero.new_zeros(zero.shape[0], factor.shape[0])
        self.state = _State(zero, fast, self.initial, torch.softmax(self.initial, 0))
        self.sums = torch.zeros_like(zero)
        self.ends = [End(0.0, zero, zero, self._slow_parts(zero, self.state)[1])]
        self.sums_at: list[torch.Tensor] = []
        self.at: list[torch.Tensor] = []
        self.flow.limit_step(self.state, 4)
        self.step = self.flow.step = scheme.FIRST * self.flow.longest
        # Finite where nothing moves.
        self.path = Path(self.initial, scheme.SHIFT * min(self.flow.longest, 1e6))

    def run(self, taus: tuple[int, ...]) -> Evolution:
        """Integrate to the last tau and collect S and f at all of them."""
        now, end = 0.0, float(taus[-1])
        while now < end:
            trial = _share(end - now, self.step)
            then = end if trial == end - now else now + trial
            order = scheme.OUTER_ORDERS[len(self.ends) - 1]
            error = self._attempt(now, then, taus)
            if error <= 1.0:
                self.step = _after(self.step, trial, _factor(error, order))
                now = then
                self.flow.limit_step(self.state, 1)
            else:
                self.step = trial * _factor(error, order)
                _require_progress(self.step, now)
        sums, outputs = (torch.stack(found).mT.contiguous() for found in (self.sums_at, self.at))
        products = -(-self.columns // self.initial.shape[0])
        if not (sums.isfinite().all() and outputs.isfinite().all()):
            raise ArithmeticError("the evolution is not finite")
        return Evolution(taus, sums, outputs, products)

    def _attempt(self, now: float, then: float, taus: tuple[int, ...]) -> float:
        """Take the step to then if its error is in bounds; return the error over the bound."""
        path, sums = self.path, self.sums.clone()
        path.follow(self.ends)
        stops = [*(float(tau) for tau in taus if now < tau < then), then]
        state, found = self.state, []
        for start, stop in pairwise([now, *stops]):
            state = self.flow.run(state, path, start, stop, sums)
            found.append((sums.clone(), state.outputs))
        gain, slope = self._slow_parts(state.integral - self.state.integral, state)
        end = End(then, self.ends[0].value + gain, gain, slope)
        # By how much R and its slope at the end are larger than extrapolated.
        reached, pace = path.evaluate((then, 0), (then, 1))
        missed, drift = reached - (self.initial - end.value), pace + slope
        turned = _jacobian(state.probability, missed)
        outputs = state.outputs - missed
        size = (state.integral * (self.initial - outputs)).sum()
        # To first order the residual is off by H missed over the step, in norm at most this.
        square = scheme.MEAN_OVER_END * (then - now) * (turned * missed).sum()
        error = _relative(square, size) / self.bound
        if error <= 1.0:
            for stop, (total, predicted) in zip(stops, found, strict=True):
                if stop in taus:
                    on_the_way = path.deviation(stop, then, missed, drift)
                    self.at.append(predicted - on_the_way)
                    self.sums_at.append(total)
            self.state = _State(state.integral, state.fast, outputs, torch.softmax(outputs, 0))
            self.ends, self.sums = [end, *self.ends[: scheme.ENDS - 1]], sums
        return error

    def _slow_parts(self, gain: torch.Tensor, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return c K' gain and c K' g [output, sample], from one kernel product.

        A gain of z instead of z: its rounding errors are relative to the gain.
        """
        both = torch.cat([gain, state.probability - self.targets])
        # The transposed view of the symmetric matrix is the faster operand on CPU.
        image = torch.mm(both, self.rest.T).mul_(self.scale)
        self.columns += both.shape[0]
        first, second = image.chunk(2)
        return first, second
