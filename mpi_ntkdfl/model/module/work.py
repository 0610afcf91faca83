"""The work of the computations of any module. See `NetworkWork`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    """

    features: int
    layers: int
    products: int
    activations: int
    params: int
    classes: int

    @property
    def widest(self) -> int:
        """All activations, which is an upper bound."""
        return self.activations

    def kernel(self, samples: Count) -> Amount:
        """One gradient per output, and half of a product of gradients."""
        entries = samples * self.classes * self.params
        gradients = 6 * self.products * self.classes * samples
        return Amount(gradients + entries * samples, 4.0 * entries)

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
