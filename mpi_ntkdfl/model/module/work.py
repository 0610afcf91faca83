"""What the computations of any module take. See `NetworkWork`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.model.work import Amount, Count


@dataclass(frozen=True)
class ModuleWork:
    """Counts that follow from a forward pass; a backward pass takes twice as much.

    Attributes:
        features: numbers of one sample's input.
        layers: tensors of parameters.
        products: multiplications of a forward pass of one sample.
        activations: numbers that a forward pass of one sample leaves.
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
        """At most all of them."""
        return self.activations

    def kernel(self, samples: Count) -> Amount:
        """A gradient for each output, and half of a product of gradients."""
        entries = samples * self.classes * self.params
        gradients = 6 * self.products * self.classes * samples
        return Amount(gradients + entries * samples, 4.0 * entries)

    def update(self, samples: Count, taus: int) -> Amount:
        """A forward pass, and a backward pass for each tau."""
        passes = (2 + 4 * taus) * self.products * samples
        return Amount(passes, 3.0 * taus * samples * self.activations)

    def descent(self, samples: Count) -> Amount:
        """A gradient of all samples."""
        return Amount(6.0 * self.products * samples, 3.0 * samples * self.activations)

    def training(
        self, samples: Count, batch: int, epochs: int, gradients: int, by_entry: bool
    ) -> Amount:
        """A gradient of all samples in each pass, and an update of all parameters in each step."""
        seen = epochs * samples
        moved = 3 * seen * self.activations + 3 * self.params * seen / batch
        steps = epochs * np.ceil(samples / batch)
        return Amount(gradients * 6.0 * self.products * seen, moved, steps)
