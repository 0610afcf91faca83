"""The transformer: settings and how it is built. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from mpi_ntkdfl.model.kinds.base import DrawnSettings, NetworkKind, Scheme, require_pictures
from mpi_ntkdfl.runtime.errors import InputError

if TYPE_CHECKING:
    from mpi_ntkdfl.model.network import Network


class TransformerSettings(DrawnSettings):
    """A transformer (Vaswani et al., NeurIPS 2017) with the norm before each part.

    Samples with three axes are pictures, which are cut into patches (Dosovitskiy et al., ICLR 2021); the
    outputs follow from the mean over patches. Samples with one axis are sequences of tokens, which are
    whole numbers from 0 to C - 1, such as the characters of a text whose next character is the label; the
    outputs follow from the last place.
    """

    name: Literal["transformer"] = "transformer"
    layers: int = Field(default=2, ge=1, le=200)
    """Number of blocks of attention and a perceptron."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Number of heads of the attention."""
    width: int = Field(default=64, ge=1, le=65_536)
    """Features of a token, a multiple of the heads; the perceptrons are four times as wide."""
    patch: int = Field(default=4, ge=1, le=1024)
    """Side in pixels of the patches into which pictures are cut; it has no effect on tokens."""
    scheme: Scheme = "torch"

    @model_validator(mode="after")
    def _whole_heads(self) -> TransformerSettings:
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got width {self.width} with {self.heads} heads"
            )
        return self


class Transformer(NetworkKind):
    """A transformer for pictures or for sequences of tokens."""

    Settings = TransformerSettings

    @classmethod
    @lru_cache(maxsize=8)
    def build(cls, settings: TransformerSettings, shape: tuple[int, ...], classes: int) -> Network:
        """The network for samples of that shape.

        Raises:
            InputError: if samples are neither pictures nor sequences, or patches do not cover pictures.
        """
        import torch

        from mpi_ntkdfl.model.architectures.starts import Start
        from mpi_ntkdfl.model.architectures.transformer import Size, patches, tokens
        from mpi_ntkdfl.model.module import ModuleNetwork

        size = Size(settings.layers, settings.heads, settings.width)
        label = f"transformer, {size.layers} layers, {size.heads} heads, width {size.width}"
        if len(shape) == 1:
            steps = torch.arange(8)[:, None] * 3 + torch.arange(shape[0])
            start = Start(partial(tokens, shape[0], size, classes), settings.scheme)
            return ModuleNetwork(
                start, shape, classes, f"{label}, {shape[0]} tokens", (steps % classes).double()
            )
        picture = require_pictures(settings.name, shape, settings.patch)
        if picture[1] % settings.patch or picture[2] % settings.patch:
            raise InputError(
                f"model.patch must divide the rows and columns of the pictures, got {settings.patch} "
                f"for pictures of {picture[1]} x {picture[2]} pixels"
            )
        start = Start(partial(patches, picture, settings.patch, size, classes), settings.scheme)
        side = f"patches of {settings.patch} x {settings.patch}"
        return ModuleNetwork(start, shape, classes, f"{label}, {side}")

    @classmethod
    def check_inputs(
        cls, blocks: Iterable[np.ndarray], shape: tuple[int, ...], classes: int
    ) -> None:
        """Checks that sequences consist of tokens.

        Raises:
            InputError: if a value of a sequence is not a whole number from 0 to C - 1.
        """
        if len(shape) != 1:
            return
        for values in blocks:
            wrong = (values != np.floor(values)) | (values < 0) | (values >= classes)
            if wrong.any():
                raise InputError(
                    "model.name=transformer takes pictures, or sequences of tokens, which are whole "
                    f"numbers from 0 to {classes - 1} (the classes), got the value {values[wrong][0]} in "
                    "a sample with one axis; use dataset.standardize=none for tokens, and "
                    "model.name=mlp for tables of numbers"
                )
