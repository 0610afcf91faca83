"""The slow part of an evolution along u, known at a few points and extrapolated from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class End:
    """Where an outer step ended: u, R there, its gain over the step, its slope [output, sample]."""

    at: float
    value: torch.Tensor
    gain: torch.Tensor
    slope: torch.Tensor


class Path:
    """f(0) - R as a polynomial in ``w = log((u + shift) / (origin + shift)) / unit``.

    R flattens out as the residuals decay on ever longer scales, so a polynomial in log u follows it
    much further than one in u.
    """

    def __init__(self, ends: Sequence[End], initial: torch.Tensor, shift: float) -> None:
        """Interpolate values and slopes of R at the newest ends.

        Args:
            ends: at most three, the newest first, where the path starts.
            initial: f(0) [output, sample].
            shift: of u in the logarithm.
        """
        newest, *others = ends
        self.origin, self.shift, self.unit, self.shape = newest.at, shift, 1.0, initial.shape
        if others:
            self.unit = -self._time(others[0].at)
        # Values relative to the newest end, where rounding would drown their differences.
        known, rows, gap = [newest.slope], [self._row(newest.at, 1)], torch.zeros_like(initial)
        for end, before in zip(others, ends, strict=False):
            gap = gap - before.gain
            known += [gap, end.slope]
            rows += [self._row(end.at, 0), self._row(end.at, 1)]
        columns = torch.tensor(rows, dtype=torch.float64)[:, 1 : len(rows) + 1]
        weights = -torch.linalg.inv(columns).to(initial)
        terms = weights @ torch.stack(known).flatten(1)
        first = (initial - newest.value).flatten()[None]
        self.coefficients = torch.cat([first, terms])

    def _time(self, at: float) -> float:
        return math.log1p((at - self.origin) / (self.origin + self.shift)) / self.unit

    def _row(self, at: float, order: int) -> list[float]:
        """Derivative, with respect to u at `at`, of the powers 0 to 5."""
        w = self._time(at)
        if order == 0:
            return [w**k for k in range(6)]
        rate = 1.0 / (self.unit * (at + self.shift))
        return [0.0, *(rate * k * w ** (k - 1) for k in range(1, 6))]

    def deviation(
        self, at: float, end: float, value: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """The cubic in w that is 0 with its slope at the origin, at u = `at`.

        Args:
            at: between the origin and the end.
            end: u where it has `value`, and `slope` with respect to u.
            value: [output, sample].
            slope: [output, sample].
        """
        whole = self._time(end)
        part = self._time(at) / whole
        steep = part**2 * (part - 1) * whole * self.unit * (end + self.shift)
        return part**2 * (3 - 2 * part) * value + steep * slope

    def evaluate(self, *points: tuple[float, int]) -> torch.Tensor:
        """Value (0) or derivative (1) at each of the points (u, 0 or 1): [point, output, sample]."""
        terms = len(self.coefficients)
        rows = self.coefficients.new_tensor([self._row(*point)[:terms] for point in points])
        return (rows @ self.coefficients).view(-1, *self.shape)
