"""The multilayer perceptron: settings and how it is built. This module does not import torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mpi_ntkdfl.model.kinds.base import DrawnSettings, NetworkKind
from mpi_ntkdfl.runtime.settings import a_list

if TYPE_CHECKING:
    from mpi_ntkdfl.model.network import Network


class MlpSettings(DrawnSettings):
    """A multilayer perceptron with ReLU."""

    factored = True

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
        Field(strict=False, max_length=100),
        a_list("[100]"),
    ] = (100,)
    """Widths of the layers between features and outputs; [] is a linear model."""


class Mlp(NetworkKind):
    """A multilayer perceptron; samples of any shape are flattened."""

    Settings = MlpSettings

    @classmethod
    def build(cls, settings: MlpSettings, shape: tuple[int, ...], classes: int) -> Network:
        """An MLP with the data set's features and classes, and the hidden widths between them."""
        from mpi_ntkdfl.model.mlp import MLP

        return MLP((math.prod(shape), *settings.hidden, classes), settings.scheme)
