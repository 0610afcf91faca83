"""Evolution of many clients at once, for devices that one client does not keep busy.

`evolve` explains the scheme. Every client has its own u, step sizes and errors, as tensors on the device.
All clients take their inner steps together until each has reached the end of its outer step. A client
that has reached its end, or whose step is rejected, keeps its state. The host reads one flag per step.
Arrays are [client, output, sample]. Clients with fewer samples are padded: rows and columns of the kernel
are zero in the padding, and so are the residuals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpi_ntkdfl.ntk import scheme
from mpi_ntkdfl.ntk.factors import nystroem_factors
from mpi_ntkdfl.ntk.left_sums import LeftSums
from mpi_ntkdfl.ntk.path import Constants, Ends, Path
from mpi_ntkdfl.ntk.step_sizes import adapted, relative, share


@dataclass(frozen=True)
class BatchEvolution:
    """Residual sums and outputs at the requested numbers of steps. See `evolve.Evolution`.

    Attributes:
        residual_sums: S(tau) `[client, tau, sample, output]`, zero in the padding.
        outputs: f(tau * lr) `[client, tau, sample, output]`, without meaning in the padding.
        failures: one text per client: why its evolution failed, or an empty text. Sums and outputs of
            clients that failed have no meaning.
        products: kernel products computed for every client, counted as in `evolve.Evolution`.
    """

    residual_sums: torch.Tensor
    outputs: torch.Tensor
    failures: list[str]
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
        targets: one-hot Y `[client, sample, output]`, zero in the padding.
        sizes: number of samples of each client; the padding comes after them.
        lr: learning rate, positive.
        taus: numbers of steps, positive and ascending.
        tolerance: as in `evolve.evolve`.

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
    # The outputs of padding are zero and their softmax is 1 / C. With the same targets the residual is 0.
    filled = torch.where(real[:, :, None], targets, 1.0 / classes)
    scale = (lr / size.double()).to(outputs)[:, None, None]
    return _Lockstep(
        kernels, outputs.mT.contiguous(), filled.mT.contiguous(), scale, tolerance
    ).run(taus)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products `[client]` in float64 of arrays `[client, ...]`."""
    return (a * b).flatten(1).sum(1).double()


def _jacobian(probability: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(diag(p) - p p^T) direction for every sample, all `[client, output, sample]`."""
    weighted = probability * direction
    return weighted - probability * weighted.sum(1, keepdim=True)


@dataclass
class _State:
    """The state of all clients at their u; arrays are `[client, output, sample]`.

    Attributes:
        integral: z.
        fast: a = F z, `[client, output, rank]`.
        outputs: f.
        probability: softmax(f).
        sums: the left sums of g up to u.
    """

    integral: torch.Tensor
    fast: torch.Tensor
    outputs: torch.Tensor
    probability: torch.Tensor
    sums: torch.Tensor

    def where(self, mask: torch.Tensor, other: _State) -> _State:
        """This state for clients whose entry of `mask` `[client]` is true, and `other` for the rest."""
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
        """Splits the kernels; all clients start at u = 0.

        Args:
            kernels: K `[client, sample, sample]`, overwritten by K'.
            initial: f(0) `[client, output, sample]`.
            targets: Y `[client, output, sample]`.
            scale: c = lr / N, `[client, 1, 1]`.
            tolerance: bound of the update's relative error.
        """
        self.initial, self.targets, self.scale = initial, targets, scale
        self.inner_bound, self.outer_bound = scheme.bounds(tolerance, initial.dtype)
        self.factor = nystroem_factors(kernels)
        self.columns = (scheme.PASSES + 1) * self.factor.shape[1]
        self.transposed = self.factor.mT.contiguous()
        self.scaled = scale * self.factor
        self.rest = kernels.baddbmm_(self.transposed, self.factor, alpha=-1.0)
        zero = torch.zeros_like(initial)
        fast = zero.new_zeros(*zero.shape[:2], self.factor.shape[1])
        self.state = _State(zero, fast, initial, torch.softmax(initial, 1), zero)
        self.ends = Ends.start(self._slow_parts(zero, self.state)[1])
        stages, device = len(scheme.STAGES) + 1, initial.device
        self.residuals = zero.new_empty(stages, *zero.shape)
        self.rates = zero.new_empty(stages, *fast.shape)
        # Constants go to the device once, because every transfer waits until the device has finished.
        self.rows = [zero.new_tensor(row) for row in scheme.STAGES]
        self.error_row = zero.new_tensor(scheme.ERROR)
        fractions = [math.fsum(row) for row in scheme.STAGES]
        self.fractions = torch.tensor(fractions, dtype=torch.float64, device=device)
        self.orders = torch.tensor(scheme.OUTER_ORDERS, dtype=torch.float64, device=device)
        self.left_sums, self.path_constants = LeftSums(device), Constants(device)
        self.now = torch.zeros(len(initial), dtype=torch.float64, device=device)
        self.failed = torch.zeros(len(initial), dtype=torch.bool, device=device)
        self.trials = torch.zeros(len(initial), dtype=torch.int64, device=device)
        self.direction = (self.state.probability - targets) @ self.transposed
        self._limit_step(4)
        self.step = self.inner_step = scheme.FIRST * self.longest
        self.shift = scheme.SHIFT * self.longest.clamp(max=scheme.LONGEST_SHIFT)

    def run(self, taus: Sequence[int]) -> BatchEvolution:
        """Integrates all clients to the last tau."""
        self.taus = torch.tensor(taus, dtype=torch.float64, device=self.now.device)
        empty = self.initial.new_zeros(len(self.initial), len(taus), *self.initial.shape[1:])
        self.sums_at, self.at = empty, empty.clone()
        end = float(taus[-1])
        while True:
            live = (self.now < end) & ~self.failed
            if not bool(live.any()):
                break
            left = end - self.now
            trial = torch.where(live, share(left, self.step), 0.0)
            then = torch.where(trial == left, end, self.now + trial)
            order = self.orders[self.ends.count - 1]
            error = self._attempt(then, live)
            self.step = torch.where(live, adapted(self.step, trial, error, order), self.step)
            self._require_progress(live & ~(error <= 1), self.step, self.now)
            self._limit_step(1)
        sums, outputs = self.sums_at.mT.contiguous(), self.at.mT.contiguous()
        products = -(-self.columns // self.initial.shape[1])
        return BatchEvolution(sums, outputs, self._failures(sums, outputs), products)

    def _failures(self, sums: torch.Tensor, outputs: torch.Tensor) -> list[str]:
        """One text per client: why its evolution failed, or an empty text."""
        finite = (sums.isfinite() & outputs.isfinite()).flatten(1).all(1)
        numbers = zip(
            *(x.tolist() for x in (self.failed, finite, self.trials, self.now)), strict=True
        )
        texts = []
        for failed, sound, trials, now in numbers:
            if failed:
                tired = trials > scheme.MOST_TRIALS
                texts.append(scheme.too_many(now) if tired else scheme.collapsed(now))
            else:
                texts.append("" if sound else "the evolution is not finite")
        return texts

    def _require_progress(
        self, rejected: torch.Tensor, step: torch.Tensor, now: torch.Tensor
    ) -> None:
        """Gives up rejected clients whose next step would be too short to change u."""
        self.failed |= rejected & ~(step > 1e-12 * now.clamp(min=1.0))

    def _limit_step(self, iterations: int) -> None:
        """Bounds the inner steps by the spectral radius of the fast part's Jacobian; see `evolve`.

        The radius comes from a power iteration that continues from call to call.
        """
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
        """From one kernel product: c K' `gain` and c K' g, `[client, output, sample]` each."""
        both = torch.cat([gain, state.probability - self.targets], dim=1)
        self.columns += both.shape[1]
        first, second = (self.scale * (both @ self.rest)).chunk(2, dim=1)
        return first, second

    # ------------------------------------------------------------------------------- outer steps

    def _attempt(self, then: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        """Tries the outer steps to `then` `[client]` and keeps those whose error is at most 1.

        Returns:
            The errors relative to their bound, `[client]`.
        """
        path = Path(self.ends, self.initial, self.shift, self.path_constants)
        state, passed = self._inner_steps(path, then)
        gain, slope = self._slow_parts(state.integral - self.state.integral, state)
        value = self.ends.value + gain
        reached, pace = path.along(then[:, None])
        missed, drift = reached - (self.initial - value), pace + slope
        turned = _jacobian(state.probability, missed)
        outputs = state.outputs - missed
        size = self._size(state, outputs) * self.scale[:, 0, 0]
        square = scheme.MEAN_OVER_END * (then - self.now) * _dot(turned, missed)
        error = relative(square, size) / self.outer_bound
        accepted = live & ~self.failed & (error <= 1)
        self._collect(path, passed, accepted, then, missed, drift)
        state.outputs, state.probability = outputs, torch.softmax(outputs, 1)
        self.state = state.where(accepted, self.state)
        self.ends = self.ends.followed(accepted, then, gain, slope)
        self.now = torch.where(accepted, then, self.now)
        return error

    def _collect(
        self,
        path: Path,
        passed: tuple[torch.Tensor, torch.Tensor],
        accepted: torch.Tensor,
        then: torch.Tensor,
        missed: torch.Tensor,
        drift: torch.Tensor,
    ) -> None:
        """Keeps sums and outputs at those taus that lie in accepted steps.

        The outputs are corrected by the error of the extrapolated path, which is known at the step's end.
        """
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
        self, path: Path, then: torch.Tensor
    ) -> tuple[_State, tuple[torch.Tensor, torch.Tensor]]:
        """Integrates along the path to `then`.

        Returns:
            The state at `then`; the left sums and the outputs at the taus passed on the way.
        """
        state, now = self.state, self.now
        sums_at, at = self.sums_at, self.at
        g, rate = self.residuals, self.rates
        torch.sub(state.probability, self.targets, out=g[0])
        torch.bmm(g[0], self.transposed, out=rate[0])
        bend = self._curvature(state, path.slope(now), rate[0])
        while True:
            active = (now < then) & ~self.failed
            if not bool(active.any()):
                return state, (sums_at, at)
            ahead = torch.where(self.taus > now[:, None], self.taus, math.inf).amin(1)
            stop = torch.minimum(ahead, then)
            left = stop - now
            wanted = torch.minimum(self.inner_step, self.longest)
            trial = torch.where(active, share(left, wanted), 0.0)
            after, slow = self._stages(state, path, now, trial)
            error = self._error(after, trial)
            accepted = active & (error <= 1)
            inner_step = adapted(self.inner_step, trial, error, scheme.INNER_ORDER)
            self.inner_step = torch.where(active, inner_step, self.inner_step)
            self._require_progress(active & ~accepted, self.inner_step, now)
            self.trials += active
            self.failed |= active & (self.trials > scheme.MOST_TRIALS)
            reached = torch.where(trial == left, stop, now + trial)
            bend_after = self._curvature(after, slow, rate[-1])
            terms = [after.integral - state.integral, g[0], g[-1], bend, bend_after]
            weights = self.left_sums.weights(now, reached).to(g)[:, :, None, None]
            after.sums = state.sums + (weights * torch.stack(terms, dim=1)).sum(1)
            state = after.where(accepted, state)
            moved = accepted[:, None, None]
            torch.where(moved, g[-1], g[0], out=g[0])
            torch.where(moved, rate[-1], rate[0], out=rate[0])
            bend = torch.where(moved, bend_after, bend)
            now = torch.where(accepted, reached, now)
            hit = (accepted[:, None] & (now[:, None] == self.taus))[:, :, None, None]
            sums_at = torch.where(hit, state.sums[:, None], sums_at)
            at = torch.where(hit, state.outputs[:, None], at)

    def _stages(
        self, state: _State, path: Path, now: torch.Tensor, step: torch.Tensor
    ) -> tuple[_State, torch.Tensor]:
        """Takes one step of the Runge-Kutta pair.

        g and a' of the first stage are known from the step before. Those of the other stages are
        computed here and stay in `self.residuals` and `self.rates`.

        Returns:
            The state at the step's end; the slope of the path at this end.
        """
        fields = path.along(now[:, None] + step[:, None] * self.fractions)
        length = step.to(state.fast)[:, None, None]
        for stage, (row, field) in enumerate(zip(self.rows, fields[:-1], strict=True), 1):
            fast = torch.addcmul(state.fast, length, _weighted(row, self.rates[:stage]))
            outputs = torch.baddbmm(field, fast, self.scaled, alpha=-1.0)
            probability = torch.softmax(outputs, 1)
            torch.sub(probability, self.targets, out=self.residuals[stage])
            torch.bmm(self.residuals[stage], self.transposed, out=self.rates[stage])
        gained = _weighted(self.rows[-1], self.residuals[:-1])
        integral = torch.addcmul(state.integral, length, gained)
        return _State(integral, fast, outputs, probability, state.sums), fields[-1]

    def _error(self, after: _State, step: torch.Tensor) -> torch.Tensor:
        """Estimated local errors relative to their bound, `[client]`, with F^T F for K in the norm."""
        fast = _weighted(self.error_row, self.rates)
        size = self._size(after, after.outputs)
        return relative(step**2 * _dot(fast, fast), size) / self.inner_bound

    def _size(self, state: _State, outputs: torch.Tensor) -> torch.Tensor:
        """z^T K z `[client]`, computed as `<z, f(0) - f> / c`.

        Where f has changed by less than its rounding error this is 0 or noise. The result is therefore
        at least |a|^2, which never exceeds z^T K z.
        """
        size = _dot(state.integral, self.initial - outputs) / self.scale[:, 0, 0]
        return torch.maximum(size, _dot(state.fast, state.fast))

    def _curvature(self, state: _State, slow: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """dg/du, from the slow part `slow` of df/du and from `rate` = da/du."""
        slope = torch.baddbmm(slow, rate, self.scaled, alpha=-1.0)
        return _jacobian(state.probability, slope)


def _weighted(row: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Sum of `terms` `[term, ...]` with the weights of `row` `[term]`."""
    return (row @ terms.flatten(1)).view(terms.shape[1:])
