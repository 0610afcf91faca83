"""All networks, by the names that configurations use.

This module does not import torch, so that settings can be read without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mpi_ntkdfl.config import ModelSettings
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry, unknown
from mpi_ntkdfl.runtime.settings import a_list

if TYPE_CHECKING:
    import torch

    from mpi_ntkdfl.model.network import Network

Factory = Callable[..., "torch.nn.Module"]
"""`factory(shape, classes, **options)` returns a module for samples of that shape."""

FACTORIES: Registry[Factory] = Registry("network", group="mpi_ntkdfl.networks")
"""Networks that users registered, for `model: {name: plugin, network: NAME}`."""


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


class MlpSettings(ModelSettings):
    """A multilayer perceptron with ReLU; `hidden` lists the widths between features and outputs."""

    factored = True

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
        Field(strict=False, max_length=100),
        a_list("[100]"),
    ] = (100,)


class Mlp(NetworkKind):
    """A multilayer perceptron; samples of any shape are flattened."""

    Settings = MlpSettings

    @classmethod
    def build(cls, settings: MlpSettings, shape: tuple[int, ...], classes: int) -> Network:
        """An MLP with the data set's features and classes, and the hidden widths between them."""
        from mpi_ntkdfl.model.mlp import MLP

        return MLP((math.prod(shape), *settings.hidden, classes))


class PluginSettings(ModelSettings):
    """A network that the user registered: `network` is its name, its factory gets the `options`."""

    name: Literal["plugin"] = "plugin"
    network: str
    options: dict[str, Any] = {}

    @field_validator("network")
    @classmethod
    def _registered(cls, network: str) -> str:
        if network not in FACTORIES:
            hint = "register it with register_network, in a file named by --plugin"
            names = unknown(FACTORIES.kind, network, FACTORIES) if FACTORIES else "there are none"
            raise ValueError(f"no network of that name is registered: {names}; {hint}")
        return network


@dataclass(frozen=True)
class Recipe:
    """How to make the module of a registered network; every rank makes its own module.

    Attributes:
        network: name under which the network is registered.
        shape: shape of one sample.
        classes: C.
        options: options for the factory.
    """

    network: str
    shape: tuple[int, ...]
    classes: int
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> torch.nn.Module:
        """Makes the module.

        Raises:
            InputError: if the factory fails or does not return a module.
        """
        import torch

        factory = FACTORIES.find(self.network)
        try:
            module: object = factory(self.shape, self.classes, **self.options)
        except Exception as error:  # whatever the user's code raises
            raise InputError(
                f"model.network: the factory of {self.network!r} failed for samples of shape "
                f"{list(self.shape)}, {self.classes} classes and options {self.options}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise InputError(
                f"model.network: the factory of {self.network!r} must return a torch.nn.Module, "
                f"got {type(module).__name__}"
            )
        return module


class Plugin(NetworkKind):
    """Any module of torch in which the outputs of a sample depend only on that sample."""

    Settings = PluginSettings

    @classmethod
    def build(cls, settings: PluginSettings, shape: tuple[int, ...], classes: int) -> Network:
        """The module that the registered factory makes."""
        from mpi_ntkdfl.model.module import ModuleNetwork

        recipe = Recipe(settings.network, shape, classes, settings.options)
        return ModuleNetwork(recipe, shape, classes, settings.network)


NETWORKS: Registry[type[NetworkKind]] = Registry(
    "network",
    {"mlp": Mlp, "plugin": Plugin},
    own="a network of your own needs {name: plugin, network: {name}} and --plugin FILE.py",
)
"""All kinds of networks by name."""


def build(settings: ModelSettings, shape: tuple[int, ...], classes: int) -> Network:
    """The network that the settings ask for, with as many outputs as the data set has classes.

    Args:
        settings: the section `model:`.
        shape: shape of one sample.
        classes: C.

    Raises:
        InputError: if there can be no such network.
    """
    return NETWORKS.find(settings.name).build(settings, shape, classes)


def register_network(name: str, factory: Factory) -> None:
    """Makes a network known, so that configurations can say `model: {name: plugin, network: NAME}`.

    The outputs of a sample must depend only on that sample. When the network is built, the package checks
    this, and checks that the Jacobians are right. A module is used in the mode (training or evaluation)
    in which the factory returns it. Parameters that do not require a gradient keep the values that the
    factory gives them.

    Args:
        name: lower-case letters, digits and dashes.
        factory: `factory(shape, classes, **options) -> torch.nn.Module`. `shape` is the shape of one
            sample, such as (784,) or (1, 28, 28). The module maps inputs `[sample, *shape]` to outputs
            before the softmax, `[sample, classes]`. The factory must draw the starting weights from
            torch's own generator, which is seeded from the run's seed before each call.

    Raises:
        InputError: if the name is taken or is not well-formed, or the factory cannot be called.
    """
    if not callable(factory):
        raise InputError(f"the factory of network {name!r} must be callable, got {factory!r}")
    FACTORIES.register(name, factory)


FACTORIES.adopt = register_network
