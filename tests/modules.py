"""Modules of torch that tests use as networks; importing this file registers one, as a plugin does."""

from __future__ import annotations

import math

import torch
from torch import nn

from mpi_ntkdfl.model.networks import register_network


def perceptron(*widths: int) -> nn.Sequential:
    """A multilayer perceptron, with the parameters of the package's own in the same order."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Pictures(nn.Module):
    """Convolutions and group norm on small square pictures, which may come as flat vectors."""

    def __init__(self, side: int, classes: int, channels: int = 2) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels)
        self.second = nn.Conv2d(channels, 3, 3, stride=2, padding=1)
        self.last = nn.Linear(3 * ((side + 1) // 2) ** 2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        here = x.view(-1, 1, self.side, self.side)
        here = torch.relu(self.norm(self.first(here)))
        return self.last(torch.relu(self.second(here)).flatten(1))


class Tied(nn.Module):
    """One matrix as two layers' weights, a frozen scale, a buffer, and a parameter that is not used."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.last = nn.Linear(width, classes)
        self.unused = nn.Parameter(torch.ones(2))
        self.scale = nn.Parameter(torch.full((), 1.5), requires_grad=False)
        self.register_buffer("shift", torch.linspace(-1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        here = torch.tanh(self.second(torch.tanh(self.first(x + self.shift))))
        return self.scale * self.last(here)


def small_pictures(shape: tuple[int, ...], classes: int, channels: int = 2) -> nn.Module:
    """The factory of a small convolutional network for the digits."""
    return Pictures(math.isqrt(math.prod(shape)), classes, channels)


register_network("small-pictures", small_pictures)
register_network("tied", lambda shape, classes: Tied(math.prod(shape), classes))
