"""The convolutional network: settings and how it is built. This module does not import torch."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from mpi_ntkdfl.model.kinds.base import DrawnSettings, NetworkKind, require_pictures
from mpi_ntkdfl.runtime.settings import a_list

if TYPE_CHECKING:
    from mpi_ntkdfl.model.network import Network


class CnnSettings(DrawnSettings):
    """Convolutions with ReLU, each followed by max-pooling over 2 x 2 pixels, then linear layers.

    The convolutions keep the size of the pictures.
    """

    name: Literal["cnn"] = "cnn"
    channels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65_536)], ...],
        Field(strict=False, min_length=1, max_length=12),
        a_list("[16, 32]"),
    ] = (16, 32)
    """Channels of each convolution."""
    kernel: int = Field(default=3, ge=1, le=31)
    """Side of the filters, an odd number."""
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
        Field(strict=False, max_length=100),
        a_list("[64]"),
    ] = (64,)
    """Widths of the linear layers before the last one."""

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("expected an odd number, so that filters have a centre")
        return kernel


class Cnn(NetworkKind):
    """A convolutional network for pictures."""

    Settings = CnnSettings

    @classmethod
    @lru_cache(maxsize=8)
    def build(cls, settings: CnnSettings, shape: tuple[int, ...], classes: int) -> Network:
        """The network for pictures of that shape.

        Raises:
            InputError: if samples are not pictures, or too small for so many poolings.
        """
        from mpi_ntkdfl.model.architectures.cnn import cnn
        from mpi_ntkdfl.model.architectures.starts import Start
        from mpi_ntkdfl.model.module import ModuleNetwork

        picture = require_pictures(settings.name, shape, 2 ** len(settings.channels))
        layers = partial(cnn, picture, settings.channels, settings.kernel, settings.hidden, classes)
        channels = "-".join(map(str, settings.channels))
        label = f"cnn, {channels} channels, {settings.kernel} x {settings.kernel}"
        return ModuleNetwork(Start(layers, settings.scheme), shape, classes, label)
