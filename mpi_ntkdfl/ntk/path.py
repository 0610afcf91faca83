"""The slow part of an evolution along u, known at a few points and extrapolated from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_TERMS = 6
"""Of the polynomial through three ends: a value and a slope at each."""


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

    def __init__(self, initial: torch.Tensor, shift: float) -> None:
        """Allocate; `follow` must come before anything else.

        Args:
            initial: f(0) [output, sample].
            shift: of u in the logarithm.
        """
        self.initial, self.shift = initial, shift
        self.origin, self.unit, self.terms = 0.0, 1.0, 0
        # Kept from path to path, which spares memory of this size anew at each.
        self.coefficients = initial.new_empty(_TERMS, initial.numel())
        self.known = initial.new_empty(_TERMS - 1, *initial.shape)
        self.values = initial.new_empty(0, initial.numel())

    def follow(self, ends: Sequence[End]) -> None:
        """Interpolate values and slopes of R at the newest ends.

        Args:
            ends: at most three, the newest first, where the path starts.
        """
        newest, *others = ends
        self.origin, self.unit = newest.at, 1.0
        if others:
            self.unit = -self._time(others[0].at)
        known, rows = self.known[: 2 * len(ends) - 1], [self._row(newest.at, 1)]
        known[0] = newest.slope
        # Values relative to the newest end, where rounding would drown their differences.
        for place, (end, before) in enumerate(zip(others, ends, strict=False)):
            gap = known[2 * place + 1]
            if place:
                torch.sub(known[2 * place - 1], before.gain, out=gap)
            else:
                torch.neg(before.gain, out=gap)
            known[2 * place + 2] = end.slope
            rows += [self._row(end.at, 0), self._row(end.at, 1)]
        self.terms = len(rows) + 1
        weights = -np.linalg.inv(np.array(rows)[:, 1 : self.terms])
        coefficients = self.coefficients[: self.terms]
        torch.sub(self.initial.flatten(), newest.value.flatten(), out=coefficients[0])
        torch.mm(self.initial.new_tensor(weights), known.flatten(1), out=coefficients[1:])

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
        """Value (0) or derivative (1) at each of the points (u, 0 or 1): [point, output, sample].

        The next call overwrites the answer.
        """
        if len(points) > len(self.values):
            self.values = self.initial.new_empty(len(points), self.initial.numel())
        rows = self.initial.new_tensor([self._row(*point)[: self.terms] for point in points])
        values = self.values[: len(points)]
        torch.mm(rows, self.coefficients[: self.terms], out=values)
        return values.view(-1, *self.initial.shape)
