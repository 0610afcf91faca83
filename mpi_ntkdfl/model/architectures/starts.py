"""Starting weights of the built-in modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mpi_ntkdfl.model.kinds.base import Scheme


@dataclass(frozen=True)
class Start:
    """Makes a module with starting weights of one scheme, from torch's generator.

    Attributes:
        make: makes the module, as torch starts its layers.
        scheme: how starting weights are drawn.
    """

    make: Callable[[], nn.Module]
    scheme: Scheme

    def __call__(self) -> nn.Module:
        """Makes the module."""
        module = self.make()
        if self.scheme == "kaiming":
            draw_kaiming(module)
        return module


@torch.no_grad()
def draw_kaiming(module: nn.Module) -> None:
    """Draws the weights of all linear layers and convolutions with deviation sqrt(2 / fan_in).

    Their biases become zero. Embeddings and norms stay as they are.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.normal_(0, math.sqrt(2 / layer.weight[0].numel()))
            if layer.bias is not None:
                layer.bias.zero_()
