"""The slow part R of evolutions: interpolated at the last ends of outer steps, and extrapolated.

The residuals decay on longer and longer time scales, and R flattens out. A polynomial in log u therefore
follows R much further than a polynomial in u. Every client has its own u. `evolve` explains the scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_TERMS = 6
"""Powers of the path's polynomial."""


class Constants:
    """Small constant arrays of a path, which are put on the device once."""

    def __init__(self, device: torch.device) -> None:
        self.powers = torch.arange(_TERMS, dtype=torch.float64, device=device)
        self.below = (self.powers - 1).clamp(min=0)
        self.identity = torch.eye(_TERMS - 1, dtype=torch.float64, device=device)
        # How many ends a client must have for each condition on its polynomial: the slope at the newest
        # end, value and slope at the second newest, value and slope at the third newest.
        self.needed = torch.tensor([1, 2, 2, 3, 3], device=device)


@dataclass(frozen=True)
class Ends:
    """The last three ends of each client's outer steps, the newest first.

    A client at its start has fewer ends; the places without an end hold any finite numbers.

    Attributes:
        count: how many of the three ends each client has, `[client]` int64.
        at: u of the ends, `[3, client]` float64.
        value: R at the newest end, `[client, output, sample]`.
        gain: by how much R grew over the step to each end, `[3, client, output, sample]`.
        slope: R' at each end, `[3, client, output, sample]`.
    """

    count: torch.Tensor
    at: torch.Tensor
    value: torch.Tensor
    gain: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def start(cls, slope: torch.Tensor) -> Ends:
        """One end for every client, at u = 0, where R = 0 and R' = `slope` `[client, output, sample]`."""
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
        """The ends after a step: clients that are `accepted` `[client]` have a new end, others do not.

        Args:
            accepted: which clients have a new end, `[client]` bool.
            at: u of the new ends, `[client]`.
            gain: by how much R grew over the step, `[client, output, sample]`.
            slope: R' at the new ends, `[client, output, sample]`.
        """
        moved = accepted[:, None, None]

        def shifted(new: torch.Tensor, old: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.where(mask, torch.cat([new[None], old[:-1]]), old)

        return Ends(
            torch.where(accepted, (self.count + 1).clamp(max=3), self.count),
            shifted(at, self.at, accepted),
            torch.where(moved, self.value + gain, self.value),
            shifted(gain, self.gain, moved),
            shifted(slope, self.slope, moved),
        )


class Path:
    """f(0) - R of every client, as a polynomial in `w = log((u + shift) / (origin + shift)) / unit`."""

    def __init__(
        self, ends: Ends, initial: torch.Tensor, shift: torch.Tensor, constants: Constants
    ) -> None:
        """Computes the coefficients that match values and slopes of R at the ends.

        Args:
            ends: the last ends of all clients.
            initial: f(0), `[client, output, sample]`.
            shift: the shift of u in the logarithm, `[client]` float64.
            constants: constant arrays on the same device.
        """
        self.constants = constants
        self.origin, self.shift, self.shape = ends.at[0], shift, initial.shape
        self.unit = torch.ones_like(shift)
        unit = -self._time(ends.at[1][:, None])[:, 0]
        self.unit = torch.where(ends.count > 1, unit, self.unit)
        # Conditions on the coefficients: the first row is the slope at the newest end; then value and
        # slope at each older end. Where a client has no such end, the row says that a coefficient is 0.
        older = ends.at[1:].T
        rows = torch.cat(
            [
                self._rows(ends.at[0][:, None], 1),
                torch.stack([self._rows(older, 0), self._rows(older, 1)], dim=2).flatten(1, 2),
            ],
            dim=1,
        )[:, :, 1:]
        applies = ends.count[:, None] >= constants.needed
        rows = torch.where(applies[:, :, None], rows, constants.identity)
        # Values of R enter relative to the newest end, as sums of gains. Differences of the values
        # themselves would be lost in rounding.
        gaps = -ends.gain[:2].cumsum(0)
        wanted = torch.stack([ends.slope[0], gaps[0], ends.slope[1], gaps[1], ends.slope[2]], dim=1)
        wanted = torch.where(applies[:, :, None], wanted.flatten(2), 0.0)
        inverse, _ = torch.linalg.inv_ex(rows)
        first = (initial - ends.value).flatten(1)[:, None]
        self.coefficients = torch.cat([first, -inverse.to(initial) @ wanted], dim=1)

    def _time(self, at: torch.Tensor) -> torch.Tensor:
        """The logarithm w at u = `at` `[client, point]`."""
        origin, shift, unit = self.origin[:, None], self.shift[:, None], self.unit[:, None]
        return torch.log1p((at - origin) / (origin + shift)) / unit

    def _rows(self, at: torch.Tensor, order: int) -> torch.Tensor:
        """Powers of w at u = `at` `[client, point]`, or (order 1) their derivatives with respect to u.

        Returns:
            `[client, point, 6]`.
        """
        w, constants = self._time(at)[:, :, None], self.constants
        if order == 0:
            return w**constants.powers
        rate = self.unit[:, None] * (at + self.shift[:, None])
        return w**constants.below * constants.powers / rate[:, :, None]

    def slope(self, at: torch.Tensor) -> torch.Tensor:
        """The path's derivative with respect to u at `at` `[client]`: `[client, output, sample]`."""
        return self._evaluated(self._rows(at[:, None], 1))[0]

    def along(self, at: torch.Tensor) -> torch.Tensor:
        """The path's values at u = `at` `[client, point]`, then its derivative at the last point.

        Returns:
            `[point + 1, client, output, sample]`.
        """
        return self._evaluated(torch.cat([self._rows(at, 0), self._rows(at[:, -1:], 1)], dim=1))

    def _evaluated(self, rows: torch.Tensor) -> torch.Tensor:
        values = rows.to(self.coefficients) @ self.coefficients
        return values.transpose(0, 1).reshape(-1, *self.shape)

    def deviation(self, at: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How an error of the path that is known at its end is spread over the step before.

        The error is taken to be a cubic polynomial in w. It and its slope are 0 at the newest end, the
        origin, and have given values at `end`.

        Args:
            at: u between the origin and the end, `[client, point]`.
            end: u where the error and its slope are known, `[client]`.

        Returns:
            The weights of the error at `end` and of its slope at `end`, `[client, point]` each.
        """
        whole = self._time(end[:, None])
        part = self._time(at) / whole
        pace = whole * self.unit[:, None] * (end + self.shift)[:, None]
        return part**2 * (3 - 2 * part), part**2 * (part - 1) * pace
