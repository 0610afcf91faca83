"""The modules of the transformer, for patches of pictures and for tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

_EXPANSION = 4
"""Width of the hidden layer in a block, as a multiple of the width."""
_POSITION = 0.02
"""Standard deviation of the positions' starting values, as of Dosovitskiy et al. (ICLR 2021)."""


@dataclass(frozen=True)
class Size:
    """Number of blocks, number of heads, and features of a token."""

    layers: int
    heads: int
    width: int


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, heads: int, width: int) -> None:
        """Makes the layers.

        Args:
            heads: number of heads.
            width: features of a token.
        """
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, _EXPANSION * width)
        self.down = nn.Linear(_EXPANSION * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From `[sample, token, feature]` to the same shape."""
        x = x + self.joined(self._attended(self.mixed(self.norm1(x))))
        outputs: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return outputs

    def _attended(self, mixed: torch.Tensor) -> torch.Tensor:
        """Values `[sample, token, feature]` from queries, keys and values in one tensor."""
        # Plain products: the fused attention of torch has no rule for gradients of single samples.
        samples, places, _ = mixed.shape
        split = mixed.view(samples, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)
        scale = 1 / math.sqrt(queries.shape[-1])
        shares = torch.softmax(scale * queries @ keys.transpose(-1, -2), -1)
        values = shares @ values
        return values.transpose(1, 2).flatten(2)


class Blocks(nn.Module):
    """Tokens with their positions through all blocks, and a linear layer at the end."""

    def __init__(self, places: int, size: Size, classes: int, last: bool) -> None:
        """Makes the layers.

        Args:
            places: number of tokens of a sample.
            size: size of the blocks.
            classes: C.
            last: whether the outputs follow from the last token; otherwise from the mean over tokens.
        """
        super().__init__()
        self.last = last
        self.positions = nn.Parameter(_POSITION * torch.randn(places, size.width))
        self.blocks = nn.Sequential(*(Block(size.heads, size.width) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.fc = nn.Linear(size.width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From `[sample, token, feature]` to outputs `[sample, output]`."""
        here = self.norm(self.blocks(x + self.positions))
        outputs: torch.Tensor = self.fc(here[:, -1] if self.last else here.mean(1))
        return outputs


class Patches(nn.Module):
    """The features of patches of pictures."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        """Makes the linear layer from pixels to features.

        Args:
            channels: channels of a picture.
            side: rows and columns of a patch.
            width: features of a token.
        """
        super().__init__()
        self.side = side
        self.linear = nn.Linear(channels * side * side, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From `[sample, channel, row, column]` to `[sample, patch, feature]`."""
        samples, channels, rows, columns = x.shape
        side = self.side
        cut = x.reshape(samples, channels, rows // side, side, columns // side, side)
        pixels = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        features: torch.Tensor = self.linear(pixels)
        return features


class Tokens(nn.Module):
    """The features of tokens, which may come as floating-point numbers."""

    def __init__(self, vocabulary: int, width: int) -> None:
        """Makes the table of features.

        Args:
            vocabulary: number of different tokens.
            width: features of a token.
        """
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From `[sample, token]` to `[sample, token, feature]`."""
        features: torch.Tensor = self.table(x.long())
        return features


def patches(picture: tuple[int, int, int], side: int, size: Size, classes: int) -> nn.Sequential:
    """The module for pictures.

    Args:
        picture: channels, rows and columns of a sample.
        side: rows and columns of a patch.
        size: size of the blocks.
        classes: C.
    """
    places = (picture[1] // side) * (picture[2] // side)
    return nn.Sequential(
        Patches(picture[0], side, size.width), Blocks(places, size, classes, last=False)
    )


def tokens(context: int, size: Size, classes: int) -> nn.Sequential:
    """The module for sequences of tokens, of which there are as many different ones as classes.

    Args:
        context: number of tokens of a sample.
        size: size of the blocks.
        classes: C.
    """
    return nn.Sequential(Tokens(classes, size.width), Blocks(context, size, classes, last=True))
