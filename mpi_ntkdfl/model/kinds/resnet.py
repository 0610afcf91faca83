"""The residual network: settings and how it is built. This module does not import torch."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from mpi_ntkdfl.model.kinds.base import DrawnSettings, NetworkKind, require_pictures

if TYPE_CHECKING:
    from mpi_ntkdfl.model.network import Network


class ResnetSettings(DrawnSettings):
    """The residual network for small pictures of He et al. ("Deep residual learning", CVPR 2016).

    It has three stages of blocks.
    """

    name: Literal["resnet"] = "resnet"
    depth: int = Field(default=8, ge=8, le=1202)
    """6 n + 2 for n blocks per stage, such as 8, 14 or 20."""
    width: int = Field(default=16, ge=1, le=16_384)
    """Channels of the first stage; the other stages have twice and four times as many."""
    norm: Literal["group", "layer", "none"] = "group"
    """`group`: over groups of channels, at most 8. `layer`: over all channels. `none`: no norm."""

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 2:
            raise ValueError("expected 6 n + 2, such as 8, 14, 20, 26 or 32")
        return depth

    @field_validator("norm", mode="before")
    @classmethod
    def _no_batch_norm(cls, norm: Any) -> Any:
        if norm == "batch":
            raise ValueError(
                "batch norm makes the samples of a batch depend on each other, so there is no Jacobian "
                "by sample; use group, layer or none"
            )
        return norm


class Resnet(NetworkKind):
    """A residual network for pictures."""

    Settings = ResnetSettings

    @classmethod
    @lru_cache(maxsize=8)
    def build(cls, settings: ResnetSettings, shape: tuple[int, ...], classes: int) -> Network:
        """The network for pictures of that shape.

        Raises:
            InputError: if samples are not pictures.
        """
        from mpi_ntkdfl.model.architectures.resnet import ResidualNet
        from mpi_ntkdfl.model.architectures.starts import Start
        from mpi_ntkdfl.model.module import ModuleNetwork

        channels, *_ = require_pictures(settings.name, shape, 4)
        blocks = (settings.depth - 2) // 6
        layers = partial(ResidualNet, channels, blocks, settings.width, settings.norm, classes)
        label = f"resnet-{settings.depth}, width {settings.width}, norm {settings.norm}"
        return ModuleNetwork(Start(layers, settings.scheme), shape, classes, label)
