"""The module of the residual network (He et al., "Deep residual learning", CVPR 2016)."""

from __future__ import annotations

import math

import torch
from torch import nn

_GROUPS = 8
"""The most groups of a group norm. Wu and He ("Group normalization", ECCV 2018) found little difference
between 2 and 32 groups."""


def norm_of(kind: str, channels: int) -> nn.Module:
    """The norm of `channels` channels: `group` (at least two channels each), `layer` or `none`."""
    if kind == "none":
        return nn.Identity()
    groups = math.gcd(_GROUPS, channels // 2) if kind == "group" and channels > 1 else 1
    return nn.GroupNorm(groups, channels)


class Block(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        """Makes the layers.

        Args:
            before: channels of the input.
            after: channels of the output.
            stride: stride of the first convolution.
            norm: kind of the norms.
        """
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=bias)
        self.norm1 = norm_of(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=bias)
        self.norm2 = norm_of(norm, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From `[sample, before, row, column]` to `[sample, after, row / stride, column / stride]`."""
        here = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(here)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A convolution, three stages of residual blocks, the mean over pixels, and a linear layer."""

    def __init__(self, channels: int, blocks: int, width: int, norm: str, classes: int) -> None:
        """Makes the layers.

        Args:
            channels: channels of a picture.
            blocks: blocks per stage.
            width: channels of the first stage.
            norm: kind of the norms.
            classes: C.
        """
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=norm == "none")
        self.norm = norm_of(norm, width)
        stages, before = [], width
        for stage in range(3):
            after = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(Block(before, after, stride, norm))
                before = after
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From pictures `[sample, channel, row, column]` to outputs `[sample, output]`."""
        here = self.blocks(torch.relu(self.norm(self.conv(x))))
        outputs: torch.Tensor = self.fc(here.mean((2, 3)))
        return outputs
