"""The slow part of evolutions along u, known at a few points and extrapolated from there.

R flattens out as the residuals decay on ever longer scales, so a polynomial in log u follows it much
further than one in u. Every client has its own u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_TERMS = 6
"""Powers of the path's polynomial."""


class Constants:
    """Small arrays a path needs, put on the device once."""

    def __init__(self, device: torch.device) -> None:
        self.powers = torch.arange(_TERMS, dtype=torch.float64, device=device)
        self.below = (self.powers - 1).clamp(min=0)
        self.identity = torch.eye(_TERMS - 1, dtype=torch.float64, device=device)
        # Ends that the slope at the newest, and value and slope at each older one, take.
        self.needed = torch.tensor([1, 2, 2, 3, 3], device=device)


@dataclass(frozen=True)
class Ends:
    """The newest ends of each client's outer steps, the newest first; unused places hold anything finite.

    Attributes:
        count: how many of the three each client has, `[client]` int64.
        at: u, `[3, client]` float64.
        value: R at the newest, `[client, output, sample]`.
        gain, slope: over the step that ended there, and of R there, `[3, client, output, sample]`.
    """

    count: torch.Tensor
    at: torch.Tensor
    value: torch.Tensor
    gain: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def start(cls, slope: torch.Tensor) -> Ends:
        """One end for everybody, at u = 0 with R = 0, where R has the `slope`."""
        zero, clients = torch.zeros_like(slope), slope.shape[0]
        return cls(
            torch.ones(clients, dtype=torch.int64, device=slope.device),
            torch.zeros(3, clients, dtype=torch.float64, device=slope.device),
            zero,
            torch.stack([zero] * 3),
            torch.stack([slope] * 3),
        )

    def followed(
        self, accepted: torch.Tensor, at: torch.Tensor, gain: torch.Tensor, slope: torch.Tensor
    ) -> Ends:
        """With a new end for the `accepted` `[client]`; the others keep theirs."""
        here = accepted[:, None, None]

        def shifted(new: torch.Tensor, old: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.where(mask, torch.cat([new[None], old[:-1]]), old)

        return Ends(
            torch.where(accepted, (self.count + 1).clamp(max=3), self.count),
            shifted(at, self.at, accepted),
            torch.where(here, self.value + gain, self.value),
            shifted(gain, self.gain, here),
            shifted(slope, self.slope, here),
        )


class Path:
    """f(0) - R of every client, as a polynomial in `w = log((u + shift) / (origin + shift)) / unit`."""

    def __init__(
        self, ends: Ends, initial: torch.Tensor, shift: torch.Tensor, constants: Constants
    ) -> None:
        """Interpolates values and slopes of R at the newest ends.

        Args:
            ends: of all clients.
            initial: f(0), `[client, output, sample]`.
            shift: of u in the logarithm, `[client]` float64.
            constants: on the same device.
        """
        self.constants = constants
        self.origin, self.shift, self.shape = ends.at[0], shift, initial.shape
        self.unit = torch.ones_like(shift)
        unit = -self._time(ends.at[1][:, None])[:, 0]
        self.unit = torch.where(ends.count > 1, unit, self.unit)
        # One row for the slope at the newest end, then value and slope at each older one. What a
        # client has no end for says that a coefficient is zero.
        older = ends.at[1:].T
        rows = torch.cat(
            [
                self._rows(ends.at[0][:, None], 1),
                torch.stack([self._rows(older, 0), self._rows(older, 1)], dim=2).flatten(1, 2),
            ],
            dim=1,
        )[:, :, 1:]
        there = ends.count[:, None] >= constants.needed
        rows = torch.where(there[:, :, None], rows, constants.identity)
        # Values relative to the newest end, where rounding would drown their differences.
        gaps = -ends.gain[:2].cumsum(0)
        known = torch.stack([ends.slope[0], gaps[0], ends.slope[1], gaps[1], ends.slope[2]], dim=1)
        known = torch.where(there[:, :, None], known.flatten(2), 0.0)
        inverse, _ = torch.linalg.inv_ex(rows)
        first = (initial - ends.value).flatten(1)[:, None]
        self.coefficients = torch.cat([first, -inverse.to(initial) @ known], dim=1)

    def _time(self, at: torch.Tensor) -> torch.Tensor:
        """Where u = `at` `[client, point]` lies in w."""
        origin, shift, unit = self.origin[:, None], self.shift[:, None], self.unit[:, None]
        return torch.log1p((at - origin) / (origin + shift)) / unit

    def _rows(self, at: torch.Tensor, order: int) -> torch.Tensor:
        """Derivative with respect to u of the powers, at `at` `[client, point]`: `[client, point, 6]`."""
        w, known = self._time(at)[:, :, None], self.constants
        if order == 0:
            return w**known.powers
        rate = self.unit[:, None] * (at + self.shift[:, None])
        return w**known.below * known.powers / rate[:, :, None]

    def slope(self, at: torch.Tensor) -> torch.Tensor:
        """Derivative with respect to u at `at` `[client]`: `[client, output, sample]`."""
        return self._evaluated(self._rows(at[:, None], 1))[0]

    def along(self, at: torch.Tensor) -> torch.Tensor:
        """Values at `at` `[client, point]`, and the derivative at the last point.

        Returns:
            `[point + 1, client, output, sample]`.
        """
        return self._evaluated(torch.cat([self._rows(at, 0), self._rows(at[:, -1:], 1)], dim=1))

    def _evaluated(self, rows: torch.Tensor) -> torch.Tensor:
        found = rows.to(self.coefficients) @ self.coefficients
        return found.transpose(0, 1).reshape(-1, *self.shape)

    def deviation(self, at: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of value and slope at `end` `[client]` in a cubic in w, 0 with its slope at the origin.

        Args:
            at: u between the origin and the end, `[client, point]`.
            end: u where value and slope are given.
        """
        whole = self._time(end[:, None])
        part = self._time(at) / whole
        pace = whole * self.unit[:, None] * (end + self.shift)[:, None]
        return part**2 * (3 - 2 * part), part**2 * (part - 1) * pace
