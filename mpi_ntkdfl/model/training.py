"""Local training: rules of descent, and what takes the steps of several clients of one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

Data = tuple[torch.Tensor, torch.Tensor]
"""A client's inputs `[sample, *shape]` and labels `[sample]`."""

Orders = Callable[[int], np.ndarray]
"""The random orders in which a client goes through its samples, `[epoch, sample]`, by its place."""


class Slope(Protocol):
    """The gradient by one array of parameters, in some form."""

    def add_to(self, array: torch.Tensor, keep: float, times: float) -> None:
        """`array = keep * array + times * gradient`, in place."""
        ...

    def dense(self) -> torch.Tensor:
        """The gradient itself, shaped as the array; the caller's to overwrite."""
        ...


Layers = list[torch.Tensor]
"""All parameters of a group's clients: arrays `[client, ...]`."""
Gradient = Callable[[Layers], Sequence[Slope]]
Pack = Callable[[torch.Tensor], Layers]


class Rule(Protocol):
    """How one gradient step changes the parameters of a group's clients."""

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place.

        Args:
            layers: arrays `[client, ...]`, which may be padded with zeros that must stay zeros.
            gradient: the batch's gradient at given arrays.
        """
        ...


class Trainer(Protocol):
    """Takes local steps of several clients; `weights` are `[client, P]`, as are the results.

    A pass goes through a client's samples in batches, of which the last may be smaller. A client's
    bits depend on its own samples, weights and orders only.
    """

    def descend(self, weights: torch.Tensor, orders: Orders, sgd: Sgd) -> torch.Tensor:
        """A round's steps by SGD; velocities start at zero."""
        ...

    def follow(
        self, weights: torch.Tensor, orders: Orders, rule: Callable[[Pack], Rule]
    ) -> torch.Tensor:
        """A round's steps by any rule.

        Args:
            weights: where to start.
            orders: of the samples.
            rule: makes a group's rule; it is given a function that turns an array `[client, P]` of
                all clients into the arrays of the group's clients.
        """
        ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent: v <- momentum v + g + weight_decay w; w <- w - lr v; v = 0 at first.

    Attributes:
        lr: learning rate.
        momentum: 0 for none.
        weight_decay: of weights and biases.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


class SgdRule:
    """`Sgd` on arrays of parameters. See `Rule`."""

    def __init__(self, sgd: Sgd) -> None:
        """Starts without velocity."""
        self._sgd = sgd
        self._velocity: Layers = []

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place."""
        self.descend(layers, gradient(layers))

    def descend(self, layers: Layers, slopes: Sequence[Slope]) -> None:
        """One step along `slopes`."""
        sgd = self._sgd
        if not sgd.momentum:
            for layer, slope in zip(layers, slopes, strict=True):
                slope.add_to(layer, keep=1 - sgd.lr * sgd.weight_decay, times=-sgd.lr)
            return
        if self._velocity:
            for velocity, slope in zip(self._velocity, slopes, strict=True):
                slope.add_to(velocity, keep=sgd.momentum, times=1)
        else:
            self._velocity = [slope.dense() for slope in slopes]
        for velocity, layer in zip(self._velocity, layers, strict=True):
            if sgd.weight_decay:
                velocity.add_(layer, alpha=sgd.weight_decay)
            layer.add_(velocity, alpha=-sgd.lr)
