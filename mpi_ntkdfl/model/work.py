"""The work of a network's computations, for planning: operations of products, numbers moved by passes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

Count = np.ndarray
"""An array with one entry per client."""


class Amount(NamedTuple):
    """An amount of work, in arrays `[client]`.

    Attributes:
        operations: additions and multiplications of matrix products.
        numbers: numbers read and written by passes over arrays that do not fit into the caches.
        steps: steps that follow one another; the number of calls grows with them.
    """

    operations: Count
    numbers: Count
    steps: Count | int = 1


class NetworkWork(Protocol):
    """Counts for one network; `samples` is the number of samples `[client]`."""

    @property
    def features(self) -> int:
        """Numbers of one sample's input; the kernel's largest eigenvalue grows with them."""

    @property
    def layers(self) -> int:
        """About the number of layers with weights; the number of calls grows with it."""

    @property
    def products(self) -> int:
        """Multiplications of a forward pass of one sample."""

    @property
    def activations(self) -> int:
        """Numbers that a forward pass of one sample keeps, inputs and outputs included."""

    @property
    def widest(self) -> int:
        """Numbers that the layer with the most outputs computes per sample."""

    def kernel(self, samples: Count) -> Amount:
        """The trace-Gram of `samples` samples, with the signals or gradients that it needs."""

    def projected(self, samples: Count, width: int) -> Amount:
        """The Jacobian of `samples` samples, projected to `width` numbers per layer and output."""

    def update(self, samples: Count, taus: int) -> Amount:
        """Transposed products of `taus` residuals."""

    def descent(self, samples: Count) -> Amount:
        """One step of full-batch gradient descent."""

    def training(
        self, samples: Count, batch: int, epochs: int, gradients: int, by_entry: bool
    ) -> Amount:
        """A round of local training.

        Args:
            samples: number of samples of each client.
            batch: number of samples per step.
            epochs: number of passes through the samples.
            gradients: number of gradients per step.
            by_entry: whether the rule of descent needs the single entries of the gradient.
        """
