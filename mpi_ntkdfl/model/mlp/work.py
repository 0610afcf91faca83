"""The work of the computations of a multilayer perceptron. See `NetworkWork`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.model.mlp.training import dual_pays, padded_samples
from mpi_ntkdfl.model.work import Amount, Count


@dataclass(frozen=True)
class StackWork:
    """Counts that follow from the widths."""

    widths: tuple[int, ...]

    @property
    def features(self) -> int:
        """Numbers of one sample's input."""
        return self.widths[0]

    @property
    def layers(self) -> int:
        """Weight matrices."""
        return len(self.widths) - 1

    @property
    def products(self) -> int:
        """Multiplications of a forward pass of one sample: weights without biases."""
        return sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    @property
    def activations(self) -> int:
        """Numbers of all layers."""
        return sum(self.widths)

    @property
    def widest(self) -> int:
        """The largest width except the input."""
        return max(self.widths[1:])

    def kernel(self, samples: Count) -> Amount:
        """One product of inputs and one of signals per layer; half of each product is computed."""
        square = samples * samples
        reads = sum(self.widths[:-1]) + sum(self.widths[1:-1])
        return Amount(1.25 * square * reads, 4.0 * square * self.layers)

    def projected(self, samples: Count, width: int) -> Amount:
        """Products of the layers' inputs with the matrices, and of the signals with the results."""
        classes, units = self.widths[-1], sum(self.widths[1:-1])
        passed = samples * units * width
        return Amount(2 * width * samples * (self.products + classes * units), 3 * passed)

    def update(self, samples: Count, taus: int) -> Amount:
        """The products of residuals with the signals and inputs of the layers."""
        widths, widest = self.widths, self.widest
        back = 2 * taus * samples * (sum(widths[:-2]) + widths[-1]) * widest
        return Amount(back, taus * 6 * samples * widest)

    def descent(self, samples: Count) -> Amount:
        """One step with the Gram matrix of the inputs, or through the weights; see descent.py."""
        first = self.widths[1]
        step = np.minimum(samples, 2 * self.features) * 2 * samples * first
        return Amount(step, 30 * samples * first)

    def training(
        self, samples: Count, batch: int, epochs: int, gradients: int, by_entry: bool
    ) -> Amount:
        """A round in the dual form if it is cheaper; see training.py."""
        features, units = self.widths[:2]
        rows = np.array([padded_samples(int(n), batch) for n in samples], dtype=np.float64)
        dual = np.array([not by_entry and dual_pays(int(n), features, epochs) for n in rows])
        in_dual = 2 * features * rows + epochs * rows * rows
        first = np.where(dual, in_dual, 3 * epochs * rows * features)
        above = 6 * epochs * rows * (self.products - features * units)
        # Numbers that a step changes when it updates the first layer.
        touched = np.where(dual, rows * units, self.products)
        steps = epochs * rows / batch
        return Amount(gradients * (2 * units * first + above), 3 * steps * touched, steps)
