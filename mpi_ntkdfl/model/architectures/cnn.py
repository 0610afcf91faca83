"""The module of the convolutional network."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn


def cnn(
    picture: tuple[int, int, int],
    channels: tuple[int, ...],
    kernel: int,
    hidden: tuple[int, ...],
    classes: int,
) -> nn.Sequential:
    """Convolutions with ReLU and max-pooling, then linear layers with ReLU.

    The parameters are called conv1.weight, conv1.bias, ..., fc1.weight, fc1.bias, ...

    Args:
        picture: channels, rows and columns of a sample.
        channels: channels of each convolution.
        kernel: side of the filters.
        hidden: widths of the linear layers before the last one.
        classes: C.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(pairwise((picture[0], *channels)), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, after, kernel, padding=kernel // 2)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    halved = 2 ** len(channels)
    features = channels[-1] * (picture[1] // halved) * (picture[2] // halved)
    widths = (features, *hidden, classes)
    for number, (before, after) in enumerate(pairwise(widths), 1):
        layers[f"fc{number}"] = nn.Linear(before, after)
        if number < len(widths) - 1:
            layers[f"fc_relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)
