"""Evolution of many clients at once, for devices that one client cannot fill.

The scheme and its notation are those of `evolve`. Here every client has its own u, step sizes and
errors, as tensors on the device: all clients take an inner step together, each as long as its own,
until all have come to the end of their outer steps; then all finish these. Who has arrived, or was
rejected, keeps what it has. The host looks at one flag an inner step and one an outer step, where
`evolve` looks at several numbers for each client.

Arrays are [client, output, sample]. Clients with fewer samples than the largest are padded by samples
that the kernel does not see and whose residual is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpi_ntkdfl.ntk import scheme
from mpi_ntkdfl.ntk.path_batch import BatchPath, Ends


@dataclass(frozen=True)
class BatchEvolution:
    """Residual sums and outputs at the requested numbers of steps. See `evolve.Evolution`.

    Attributes:
        residual_sums: S(tau) `[client, tau, sample, output]`; padding is zero.
        outputs: f(tau * lr), likewise; padding is not meaningful.
        failed: clients whose evolution is not finite or whose step size collapsed, `[client]` on the
            host; their entries mean nothing.
        products: kernel products spent on every client, counted as there.
    """

    residual_sums: torch.Tensor
    outputs: torch.Tensor
    failed: list[bool]
    products: int


def evolve_batch(
    kernels: torch.Tensor,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    sizes: Sequence[int],
    lr: float,
    taus: Sequence[int],
    tolerance: float,
) -> BatchEvolution:
    """Evolves the outputs of several clients under the cross-entropy loss.

    Args:
        kernels: K `[client, sample, sample]`, zero where either sample is padding. Overwritten.
        outputs: f(0) `[client, sample, output]`, zero in the padding.
        targets: one-hot Y, likewise.
        sizes: samples of each client, its first ones.
        lr: learning rate, positive.
        taus: numbers of steps, positive and ascending.
        tolerance: as in `evolve`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    clients, samples, classes = outputs.shape
    if kernels.shape != (clients, samples, samples) or targets.shape != outputs.shape:
        raise ValueError(
            f"expected kernels {(clients, samples, samples)} and targets {tuple(outputs.shape)}, got "
            f"{tuple(kernels.shape)} and {tuple(targets.shape)}"
        )
    size = torch.tensor(sizes, device=outputs.device)
    real = torch.arange(samples, device=outputs.device) < size[:, None]
    # The softmax of zero outputs, so that the residual is zero.
    filled = torch.where(real[:, :, None], targets, 1.0 / classes)
    scale = (lr / size.double()).to(outputs)[:, None, None]
    return _Lockstep(
        kernels, outputs.mT.contiguous(), filled.mT.contiguous(), scale, tolerance
    ).run(taus)


def left_sum_weights(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Weights `[5, client]` of the left sum over [start, end) `[client]`; see `evolve`. Zero if none.

    With n integers x in the step, the sums of theta^k = ((x - start) / (end - start))^k follow from
    those of the powers of 0 to n - 1.
    """
    first, step = start.ceil(), torch.where(end > start, end - start, 1.0)
    n = end.ceil() - first
    s1 = n * (n - 1) / 2
    s2 = s1 * (2 * n - 1) / 3
    s3, s4 = s1**2, s2 * (3 * n**2 - 3 * n - 1) / 5
    x, h = (first - start) / step, 1 / step
    m0, m1 = n, n * x + h * s1
    m2 = n * x**2 + 2 * x * h * s1 + h**2 * s2
    m3 = n * x**3 + 3 * x**2 * h * s1 + 3 * x * h**2 * s2 + h**3 * s3
    m4 = n * x**4 + 4 * x**3 * h * s1 + 6 * x**2 * h**2 * s2 + 4 * x * h**3 * s3 + h**4 * s4
    return torch.stack(
        [
            30 * (m2 - 2 * m3 + m4) / step,
            m0 - 18 * m2 + 32 * m3 - 15 * m4,
            -12 * m2 + 28 * m3 - 15 * m4,
            step * (m1 - 4.5 * m2 + 6 * m3 - 2.5 * m4),
            step * (1.5 * m2 - 4 * m3 + 2.5 * m4),
        ]
    )


def _nystroem_factors(kernels: torch.Tensor) -> torch.Tensor:
    """A factor F `[client, rank, sample]` of each kernel; see `evolve`. Missing ranks are zero."""
    samples = kernels.shape[1]
    rank = min(scheme.RANK, samples)
    row = torch.arange(1, rank + 1, dtype=torch.float64, device=kernels.device)
    column = torch.arange(1, samples + 1, dtype=torch.float64, device=kernels.device)
    phase = torch.outer(row, column * (column + 1)) * ((math.sqrt(5) - 1) / 2)
    image = torch.cos(phase).to(kernels).expand(kernels.shape[0], -1, -1) @ kernels
    for _ in range(scheme.PASSES):
        wide = image.double()
        basis = _whitened(wide @ wide.mT, image, 1e-12)
        image = basis @ kernels
    return _whitened(image @ basis.mT, image, 1e-5)


def _whitened(gram: torch.Tensor, rows: torch.Tensor, least: float) -> torch.Tensor:
    """`gram^(-1/2) rows` on the eigenvectors above `least` times the largest eigenvalue, else zero."""
    gram = gram.double()
    sound = gram.isfinite().all(dim=2).all(dim=1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(sound, (gram + gram.mT) / 2, 0.0))
    keep = (values > least * values[:, -1:]) & (values > 0)
    weights = torch.where(keep, values.clamp(min=1e-300).rsqrt(), 0.0)[:, :, None] * vectors.mT
    whitened: torch.Tensor = weights.to(rows) @ rows
    return whitened


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products `[client]` in float64 of arrays `[client, ...]`."""
    return (a * b).flatten(1).sum(1).double()


def _jacobian(probability: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(diag(p) - p p^T) direction for every sample, all `[client, output, sample]`."""
    weighted = probability * direction
    return weighted - probability * weighted.sum(1, keepdim=True)


def _relative(square: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """sqrt(|square / size|) `[client]`, 0 where square is 0, infinite where size is."""
    ratio = (square.abs() / size.abs()).sqrt()
    return torch.where(square == 0, 0.0, torch.where(size == 0, math.inf, ratio))


def _factor(error: torch.Tensor, order: torch.Tensor | float) -> torch.Tensor:
    """By how much the next steps may be larger, given the errors `[client]`."""
    free = scheme.SAFETY * error.clamp(min=1e-10) ** (-1.0 / order)
    return torch.where(error.isfinite(), free.clamp(scheme.SHRINK, scheme.GROW), scheme.SHRINK)


def _share(left: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Steps to take: equal shares near the end of the way."""
    equal = left / (left / step - 1e-9).ceil().clamp(min=1)
    return torch.where(left >= 2 * step, step, torch.where(left > step, equal, left))


def _adapted(
    step: torch.Tensor, trial: torch.Tensor, error: torch.Tensor, order: torch.Tensor | float
) -> torch.Tensor:
    """Step sizes `[client]` after trials with these errors, relative to their bounds."""
    wanted = trial * _factor(error, order)
    cut_short = (error <= 1) & (trial < step)
    return torch.where(cut_short, torch.maximum(step, wanted), wanted)


@dataclass
class _State:
    """z, a = F z, f, softmax(f) and the left sums; `a` is `[client, output, rank]`."""

    integral: torch.Tensor
    fast: torch.Tensor
    outputs: torch.Tensor
    probability: torch.Tensor
    sums: torch.Tensor

    def where(self, mask: torch.Tensor, other: _State) -> _State:
        """Its own clients where the mask `[client]` is true, the other's elsewhere."""
        mine, others = vars(self), vars(other)
        return _State(**{k: torch.where(mask[:, None, None], mine[k], others[k]) for k in mine})


class _Lockstep:
    """The state of all clients between outer steps."""

    def __init__(
        self,
        kernels: torch.Tensor,
        initial: torch.Tensor,
        targets: torch.Tensor,
        scale: torch.Tensor,
        tolerance: float,
    ) -> None:
        """Splits the kernels and starts everybody at u = 0.

        Args:
            kernels: K `[client, sample, sample]`, overwritten by K'.
            initial: f(0) `[client, output, sample]`.
            targets: Y, likewise.
            scale: c = lr / N, `[client, 1, 1]`.
            tolerance: of the update.
        """
        self.initial, self.targets, self.scale = initial, targets, scale
        reachable = max(tolerance, 4 * torch.finfo(initial.dtype).eps)
        self.outer_bound = scheme.OUTER_FRACTION * reachable
        self.inner_bound = scheme.INNER_FRACTION * reachable
        self.factor = _nystroem_factors(kernels)
        self.columns = (scheme.PASSES + 1) * self.factor.shape[1]
        self.transposed = self.factor.mT.contiguous()
        self.rest = kernels.baddbmm_(self.transposed, self.factor, alpha=-1.0)
        zero = torch.zeros_like(initial)
        fast = zero.new_zeros(*zero.shape[:2], self.factor.shape[1])
        self.state = _State(zero, fast, initial, torch.softmax(initial, 1), zero)
        self.ends = Ends.start(self._slow_parts(zero, self.state)[1])
        self.now = torch.zeros(len(initial), dtype=torch.float64, device=initial.device)
        self.failed = torch.zeros(len(initial), dtype=torch.bool, device=initial.device)
        self.direction = (self.state.probability - targets) @ self.transposed
        self._limit_step(4)
        self.step = self.inner_step = scheme.FIRST * self.longest
        self.shift = scheme.SHIFT * self.longest.clamp(max=1e6)

    def run(self, taus: Sequence[int]) -> BatchEvolution:
        """Integrates everybody to the last tau."""
        self.taus = torch.tensor(taus, dtype=torch.float64, device=self.now.device)
        empty = self.initial.new_zeros(len(self.initial), len(taus), *self.initial.shape[1:])
        self.sums_at, self.at = empty, empty.clone()
        orders = torch.tensor(scheme.OUTER_ORDERS, dtype=torch.float64, device=self.now.device)
        end = float(taus[-1])
        while True:
            live = (self.now < end) & ~self.failed
            if not bool(live.any()):
                break
            left = end - self.now
            trial = torch.where(live, _share(left, self.step), 0.0)
            then = torch.where(trial == left, end, self.now + trial)
            order = orders[self.ends.count - 1]
            error = self._attempt(then, live)
            adapted = _adapted(self.step, trial, error, order)
            self.step = torch.where(live, adapted, self.step)
            self._require_progress(live & ~(error <= 1), self.step, self.now)
            self._limit_step(1)
        sums, outputs = (found.mT.contiguous() for found in (self.sums_at, self.at))
        finite = (sums + outputs).flatten(1).isfinite().all(1)
        products = -(-self.columns // self.initial.shape[1])
        return BatchEvolution(sums, outputs, (self.failed | ~finite).tolist(), products)

    def _require_progress(
        self, rejected: torch.Tensor, step: torch.Tensor, now: torch.Tensor
    ) -> None:
        """Gives up clients whose step no longer moves u."""
        self.failed |= rejected & ~(step > 1e-12 * now.clamp(min=1.0))

    def _limit_step(self, iterations: int) -> None:
        """Bounds inner steps by the spectral radius of the fast Jacobian; see `evolve`."""
        state, direction = self.state, self.direction
        for _ in range(iterations):
            turned = _jacobian(state.probability, direction @ self.factor)
            image = self.scale * (turned @ self.transposed)
            length = torch.linalg.vector_norm(image, dim=(1, 2), keepdim=True)
            radius = length / torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
            direction = image / length
        value = radius[:, 0, 0].double()
        moves = value > 0
        start = (state.probability - self.targets) @ self.transposed
        self.direction = torch.where(moves[:, None, None], direction, start)
        self.longest = torch.where(moves, scheme.STABLE / value, math.inf)

    def _slow_parts(self, gain: torch.Tensor, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
        """Both c K' gain and c K' g `[client, output, sample]`, from one kernel product."""
        both = torch.cat([gain, state.probability - self.targets], dim=1)
        self.columns += both.shape[1]
        first, second = (self.scale * (both @ self.rest)).chunk(2, dim=1)
        return first, second

    # ------------------------------------------------------------------------------- outer steps

    def _attempt(self, then: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        """Takes the outer steps to `then` whose errors are in bounds; the errors `[client]`."""
        path = BatchPath(self.ends, self.initial, self.shift)
        state, passed = self._inner_steps(path, then)
        gain, slope = self._slow_parts(state.integral - self.state.integral, state)
        value = self.ends.value + gain
        reached, pace = path.evaluate(then[:, None], then[:, None])
        missed, drift = reached - (self.initial - value), pace + slope
        turned = _jacobian(state.probability, missed)
        outputs = state.outputs - missed
        size = _dot(state.integral, self.initial - outputs)
        square = scheme.MEAN_OVER_END * (then - self.now) * _dot(turned, missed)
        error = _relative(square, size) / self.outer_bound
        accepted = live & ~self.failed & (error <= 1)
        self._collect(path, passed, accepted, then, missed, drift)
        state.outputs, state.probability = outputs, torch.softmax(outputs, 1)
        self.state = state.where(accepted, self.state)
        self.ends = self.ends.followed(accepted, then, gain, slope)
        self.now = torch.where(accepted, then, self.now)
        return error

    def _collect(
        self,
        path: BatchPath,
        passed: tuple[torch.Tensor, torch.Tensor],
        accepted: torch.Tensor,
        then: torch.Tensor,
        missed: torch.Tensor,
        drift: torch.Tensor,
    ) -> None:
        """Keeps sums and outputs at the taus in accepted steps, less what the path had missed."""
        sums, outputs = passed
        taus = self.taus.expand(len(then), -1)
        inside = accepted[:, None] & (self.now[:, None] < taus) & (taus <= then[:, None])
        of_value, of_slope = path.deviation(torch.where(inside, taus, self.now[:, None]), then)
        inside, of_value, of_slope = (
            x[:, :, None, None] for x in (inside, of_value.to(missed), of_slope.to(missed))
        )
        on_the_way = of_value * missed[:, None] + of_slope * drift[:, None]
        self.sums_at = torch.where(inside, sums, self.sums_at)
        self.at = torch.where(inside, outputs - on_the_way, self.at)

    # ------------------------------------------------------------------------------- inner steps

    def _inner_steps(
        self, path: BatchPath, then: torch.Tensor
    ) -> tuple[_State, tuple[torch.Tensor, torch.Tensor]]:
        """Integrates along the path to `then`; also sums and outputs at the taus on the way."""
        state, now = self.state, self.now
        sums_at, at = self.sums_at, self.at
        residual = state.probability - self.targets
        rate = residual @ self.transposed
        slow = path.evaluate(now.new_empty(len(now), 0), now[:, None])[0]
        curvature = self._curvature(state, slow, rate)
        while True:
            active = (now < then) & ~self.failed
            if not bool(active.any()):
                return state, (sums_at, at)
            place = torch.searchsorted(self.taus, now, right=True)
            mark = self.taus[place.clamp(max=len(self.taus) - 1)]
            stop = torch.where(mark > now, torch.minimum(mark, then), then)
            left = stop - now
            wanted = torch.minimum(self.inner_step, self.longest)
            trial = torch.where(active, _share(left, wanted), 0.0)
            after, residuals, rates, slow = self._stages(state, (residual, rate), path, now, trial)
            error = self._error(after, rates, trial)
            accepted = active & (error <= 1)
            adapted = _adapted(self.inner_step, trial, error, scheme.INNER_ORDER)
            self.inner_step = torch.where(active, adapted, self.inner_step)
            self._require_progress(active & ~accepted, self.inner_step, now)
            reached = torch.where(trial == left, stop, now + trial)
            bend = self._curvature(after, slow, rates[-1])
            weights = left_sum_weights(now, reached).to(residual)[:, :, None, None]
            terms = (after.integral - state.integral, residual, residuals[-1], curvature, bend)
            gained = sum(weight * term for weight, term in zip(weights, terms, strict=True))
            after.sums = state.sums + gained
            state = after.where(accepted, state)
            here = accepted[:, None, None]
            residual, rate = (
                torch.where(here, *pair) for pair in ((residuals[-1], residual), (rates[-1], rate))
            )
            curvature = torch.where(here, bend, curvature)
            now = torch.where(accepted, reached, now)
            hit = (accepted[:, None] & (now[:, None] == self.taus))[:, :, None, None]
            sums_at = torch.where(hit, state.sums[:, None], sums_at)
            at = torch.where(hit, state.outputs[:, None], at)

    def _stages(
        self,
        state: _State,
        start: tuple[torch.Tensor, torch.Tensor],
        path: BatchPath,
        now: torch.Tensor,
        step: torch.Tensor,
    ) -> tuple[_State, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step of the pair from g and a' at its start.

        Returns:
            The state at its end; g `[stage, client, output, sample]` and a' at all stages; the slope
            of the path at the end.
        """
        ends = torch.stack([now + math.fsum(row) * step for row in scheme.STAGES], dim=1)
        fields = path.evaluate(ends, (now + step)[:, None])
        length = step.to(state.fast)[:, None, None]
        residuals, rates = [start[0]], [start[1]]
        for row, field in zip(scheme.STAGES, fields[:-1], strict=True):
            fast = state.fast + length * _weighted(row, rates)
            outputs = torch.baddbmm(field, self.scale * fast, self.factor, alpha=-1.0)
            probability = torch.softmax(outputs, 1)
            residuals.append(probability - self.targets)
            rates.append(residuals[-1] @ self.transposed)
        integral = state.integral + length * _weighted(scheme.STAGES[-1], residuals[:-1])
        after = _State(integral, fast, outputs, probability, state.sums)
        return after, torch.stack(residuals), torch.stack(rates), fields[-1]

    def _error(self, after: _State, rates: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Estimated local errors over their bound `[client]`; F^T F stands for K in the norm."""
        fast = _weighted(scheme.ERROR, list(rates)) * step.to(rates)[:, None, None]
        size = _dot(after.integral, (self.initial - after.outputs) / self.scale)
        return _relative(_dot(fast, fast), size) / self.inner_bound

    def _curvature(self, state: _State, slow: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """dg/du, given the slow part of df/du and da/du."""
        slope = torch.baddbmm(slow, self.scale * rate, self.factor, alpha=-1.0)
        return _jacobian(state.probability, slope)


def _weighted(row: Sequence[float], terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of `terms` with the weights of `row`."""
    stacked = torch.stack(list(terms))
    weights = stacked.new_tensor(row)
    return (weights @ stacked.flatten(1)).view_as(terms[0])
