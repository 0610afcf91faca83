"""What a network's computations take, for planning: operations of products, numbers moved by passes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

Count = np.ndarray
"""One entry for each client."""


class Amount(NamedTuple):
    """Arrays `[client]`.

    Attributes:
        operations: additions and multiplications of products.
        numbers: read and written by passes over arrays that leave the caches.
        steps: one after another; the number of calls grows with them.
    """

    operations: Count
    numbers: Count
    steps: Count | int = 1


class NetworkWork(Protocol):
    """Counts for one network; `samples` are `[client]`."""

    @property
    def features(self) -> int:
        """Numbers of one sample's input; the kernel's largest eigenvalue grows with them."""
        ...

    @property
    def layers(self) -> int:
        """Layers with weights, about; the number of calls grows with them."""
        ...

    @property
    def products(self) -> int:
        """Multiplications of a forward pass of one sample."""
        ...

    @property
    def activations(self) -> int:
        """Numbers that a forward pass of one sample leaves, inputs and outputs included."""
        ...

    @property
    def widest(self) -> int:
        """Numbers of one sample in the layer that puts out most."""
        ...

    def kernel(self, samples: Count) -> Amount:
        """The trace-Gram of `samples` samples, signals or gradients included where it needs them."""
        ...

    def update(self, samples: Count, taus: int) -> Amount:
        """Transposed products of `taus` residuals."""
        ...

    def descent(self, samples: Count) -> Amount:
        """A step of full-batch gradient descent."""
        ...

    def training(
        self, samples: Count, batch: int, epochs: int, gradients: int, by_entry: bool
    ) -> Amount:
        """A round of local training.

        Args:
            samples: of each client.
            batch: samples of a step.
            epochs: passes through them.
            gradients: of a step.
            by_entry: whether the rule of descent needs the gradient's entries.
        """
        ...
