"""The work of the computations of any module. See `NetworkWork`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.model.module.fast import turns
from mpi_ntkdfl.model.work import Amount, Count


@dataclass(frozen=True)
class ModuleWork:
    """Counts that follow from a forward pass; a backward pass takes twice as much.

    Attributes:
        features: numbers of one sample's input.
        layers: number of parameter tensors.
        products: multiplications of a forward pass of one sample.
        activations: numbers that a forward pass of one sample keeps.
        params: P.
        classes: C.
        room: how many numbers of gradients a kernel holds.
        generic: entries of the parameters that the generic form of the kernel serves.
        multiplied: entries of those whose gradients the fast form multiplies.
        linear: shapes `(out, in)` of the linear maps for which the fast form needs no gradients.
    """

    features: int
    layers: int
    products: int
    activations: int
    params: int
    classes: int
    room: int
    generic: int
    multiplied: int
    linear: tuple[tuple[int, int], ...]

    @property
    def factors(self) -> int:
        """Numbers of one sample that the linear maps of the fast form multiply: inputs and signals."""
        return sum(fan_in + self.classes * units for units, fan_in in self.linear)

    @property
    def widest(self) -> int:
        """All activations, which is an upper bound."""
        return self.activations

    def kernel(self, samples: Count) -> Amount:
        """The work of the form that runs: gradients, and half of their products."""
        operations, numbers = 0.0 * samples, 0.0 * samples
        if self.generic:
            entries = samples * self.classes * self.generic
            operations += 6.0 * self.products * self.classes * samples + entries * samples
            numbers += 4.0 * entries
        if self.multiplied or self.linear:
            fast = self._fast_kernel(samples)
            operations, numbers = operations + fast.operations, numbers + fast.numbers
        return Amount(operations, numbers)

    def _fast_kernel(self, samples: Count) -> Amount:
        """Forward passes of all samples, one backward pass per output, and products.

        A group of parameters after the first is nearer to the outputs, so its backward passes are
        counted half.
        """
        at_once, groups = turns(self.multiplied, np.rint(samples), self.classes, self.room)
        forward = groups * np.ceil(self.classes / at_once)
        backward = self.classes * (1 + groups) / 2
        passes = 2.0 * self.products * samples * (forward + backward + self.classes)
        entries = self.classes * self.multiplied
        moved = 3 * self.activations * (forward + backward) + 2 * entries
        return Amount(passes + (entries + self.factors) * samples**2, 1.0 * moved * samples)

    def projected(self, samples: Count, width: int) -> Amount:
        """One gradient per output, and its products with the matrices."""
        entries = samples * self.classes * self.params
        gradients = 6 * self.products * self.classes * samples
        return Amount(gradients + 2 * width * entries, 4.0 * entries)

    def update(self, samples: Count, taus: int) -> Amount:
        """One forward pass, and one backward pass per tau."""
        passes = (2 + 4 * taus) * self.products * samples
        return Amount(passes, 3.0 * taus * samples * self.activations)

    def descent(self, samples: Count) -> Amount:
        """One gradient of all samples."""
        return Amount(6.0 * self.products * samples, 3.0 * samples * self.activations)

    def training(
        self, samples: Count, batch: int, epochs: int, gradients: int, by_entry: bool
    ) -> Amount:
        """One gradient of all samples per pass, and one update of all parameters per step."""
        seen = epochs * samples
        moved = 3 * seen * self.activations + 3 * self.params * seen / batch
        steps = epochs * np.ceil(samples / batch)
        return Amount(gradients * 6.0 * self.products * seen, moved, steps)
