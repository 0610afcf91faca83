"""What a kind of network is, and what the kinds share. This module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mpi_ntkdfl.config import ModelSettings
from mpi_ntkdfl.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from mpi_ntkdfl.model.network import Network

Scheme = Literal["kaiming", "torch"]
"""How starting weights are drawn. `kaiming` is that of He et al. ("Delving deep into rectifiers", ICCV
2015), normal weights; the NTK-DFL paper starts in this way."""


class DrawnSettings(ModelSettings):
    """Settings of networks whose starting weights are drawn by a scheme."""

    scheme: Scheme = "kaiming"
    """How starting weights are drawn. `kaiming`: weights with deviation sqrt(2 / fan_in) and zero biases.
    `torch`: as torch makes its layers, uniformly between -1 / sqrt(fan_in) and 1 / sqrt(fan_in).
    """


class NetworkKind(ABC):
    """A kind of network.

    Attributes:
        Settings: the class of the settings in the `model:` section of this kind.
    """

    Settings: ClassVar[type[ModelSettings]]

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, shape: tuple[int, ...], classes: int) -> Network:
        """The network that the settings ask for.

        Args:
            settings: an instance of `Settings`.
            shape: shape of one sample in the data set.
            classes: C.

        Raises:
            InputError: if there can be no such network.
        """

    @classmethod
    def check_inputs(
        cls, blocks: Iterable[np.ndarray], shape: tuple[int, ...], classes: int
    ) -> None:
        """Checks the samples of a data set; most networks take any values.

        Args:
            blocks: inputs as the network gets them, arrays `[sample, feature]`.
            shape: shape of one sample.
            classes: C.

        Raises:
            InputError: if a value cannot be an input.
        """
        return


def require_pictures(name: str, shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """The shape of a picture: channels, rows, columns.

    Args:
        name: name of the network.
        shape: shape of one sample.
        least: the fewest rows and columns with which the network works.

    Raises:
        InputError: if samples are not pictures, or the pictures are too small.
    """
    if len(shape) != 3:
        raise InputError(
            f"model.name={name} takes pictures of shape [channel, row, column], got samples of shape "
            f"{list(shape)}; use model.name=mlp for this data set"
        )
    channels, rows, columns = shape
    if min(rows, columns) < least:
        raise InputError(
            f"model.name={name} with these settings takes pictures of at least {least} x {least} "
            f"pixels, got {rows} x {columns}; use fewer layers or model.name=mlp"
        )
    return channels, rows, columns
