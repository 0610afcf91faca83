"""Networks that users registered: their factories, settings, and how their modules are made.

This module does not import torch, so that settings can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from mpi_ntkdfl.config import ModelSettings
from mpi_ntkdfl.model.kinds.base import NetworkKind
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry, unknown

if TYPE_CHECKING:
    import torch

    from mpi_ntkdfl.model.network import Network

Factory = Callable[..., "torch.nn.Module"]
"""`factory(shape, classes, **options)` returns a module for samples of that shape."""

FACTORIES: Registry[Factory] = Registry("network", group="mpi_ntkdfl.networks")
"""Networks that users registered, for `model: {name: plugin, network: NAME}`."""


class PluginSettings(ModelSettings):
    """A network that the user registered."""

    name: Literal["plugin"] = "plugin"
    network: str
    """The name under which the network is registered."""
    options: dict[str, Any] = {}
    """Arguments of the function that makes the module, by name."""

    @field_validator("network")
    @classmethod
    def _registered(cls, network: str) -> str:
        if network not in FACTORIES:
            hint = "give the file that calls register_network by --plugin FILE.py"
            known = unknown(FACTORIES.kind, network, FACTORIES) if FACTORIES else ""
            raise ValueError(f"{known or 'no network is registered'}; {hint}")
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
