"""Local training: rules of descent, and the interface of trainers, which step for several clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

Data = tuple[torch.Tensor, torch.Tensor]
"""A client's inputs `[sample, *shape]` and labels `[sample]`."""

Orders = Callable[[int], np.ndarray]
"""A function from a client's index to the random orders of its samples, `[epoch, sample]`."""


class Slope(Protocol):
    """The gradient with respect to one array of parameters, in some form."""

    def add_to(self, array: torch.Tensor, keep: float, times: float) -> None:
        """`array = keep * array + times * gradient`, in place."""

    def dense(self) -> torch.Tensor:
        """The gradient itself in the shape of the array; the caller may overwrite it."""


Layers = list[torch.Tensor]
"""All parameters of a group's clients: arrays `[client, ...]`."""
Gradient = Callable[[Layers], Sequence[Slope]]
Pack = Callable[[torch.Tensor], Layers]


class Rule(Protocol):
    """How one gradient step changes the parameters of a group's clients."""

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place.

        Args:
            layers: arrays `[client, ...]`; they may be padded with zeros, which must stay zeros.
            gradient: a function that returns the gradient of the batch at given arrays.
        """


class Trainer(Protocol):
    """Takes the local steps of several clients; `weights` and the results are `[client, P]`.

    A pass goes through a client's samples in batches; the last batch may be smaller. The bits of a
    client depend only on its own samples, weights and orders.
    """

    def descend(self, weights: torch.Tensor, orders: Orders, sgd: Sgd) -> torch.Tensor:
        """Takes the steps of a round by SGD; velocities start at zero."""

    def follow(
        self, weights: torch.Tensor, orders: Orders, rule: Callable[[Pack], Rule]
    ) -> torch.Tensor:
        """Takes the steps of a round by any rule.

        Args:
            weights: weights at the start.
            orders: orders of the samples.
            rule: makes the rule of a group of clients. Its argument is a function that turns an array
                `[client, P]` of all clients into the arrays of the group's clients.
        """


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent: v <- momentum v + g + weight_decay w; w <- w - lr v; v starts at 0.

    Attributes:
        lr: learning rate.
        momentum: 0 for none.
        weight_decay: factor of weights and biases in the gradient.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


class SgdRule:
    """`Sgd` on arrays of parameters. See `Rule`."""

    def __init__(self, sgd: Sgd) -> None:
        """Starts with the velocity zero."""
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
