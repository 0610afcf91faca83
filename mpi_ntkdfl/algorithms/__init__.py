"""All methods, by the names under which configurations call them.

The file of a method contains its name, label, look, needs and work. This module contains only the list.
"""

from __future__ import annotations

from typing import Any, get_args

from mpi_ntkdfl.algorithms.average_gd import AverageGd
from mpi_ntkdfl.algorithms.base import Method
from mpi_ntkdfl.algorithms.d_psgd import DPsgd
from mpi_ntkdfl.algorithms.dfedadmm import Dfedadmm
from mpi_ntkdfl.algorithms.dfedavg import Dfedavg
from mpi_ntkdfl.algorithms.dfedavgm import Dfedavgm
from mpi_ntkdfl.algorithms.dfedsam import Dfedsam
from mpi_ntkdfl.algorithms.dispfl import Dispfl
from mpi_ntkdfl.algorithms.fedavg import Fedavg
from mpi_ntkdfl.algorithms.k_gt import KGt
from mpi_ntkdfl.algorithms.local import Local
from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl
from mpi_ntkdfl.algorithms.ntk_fl import NtkFl
from mpi_ntkdfl.algorithms.oledfl import Oledfl
from mpi_ntkdfl.algorithms.qg_dsgdm import QgDsgdm
from mpi_ntkdfl.algorithms.spark_style import SparkStyle
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import LineStyle
from mpi_ntkdfl.runtime.registry import Registry

METHODS: Registry[type[Method[Any]]] = Registry("method", group="mpi_ntkdfl.methods")
"""All methods by name. The first is the one of a configuration that names none."""


def register_method(method_class: type[Method[Any]]) -> None:
    """Registers a method, so that configurations can say `algorithm: {name: NAME, ...}`.

    NAME is the only value of the `Literal` in the field `name` of the method's settings:

        class MineSettings(MethodSettings):
            name: Literal["mine"] = "mine"

    Args:
        method_class: a subclass of `Method`.

    Raises:
        InputError: if the name is taken, or the class lacks what a method needs; the message says
            what is missing.
    """
    given: object = method_class
    if not (isinstance(given, type) and issubclass(given, Method)):
        raise InputError(f"a method must be a subclass of Method, got {method_class!r}")
    if lacking := _lacking(method_class):
        raise InputError(f"the method {method_class.__name__} lacks {', '.join(lacking)}")
    METHODS.register(method_class.name(), method_class)


def _adopt(name: str, method_class: Any) -> None:
    """Registers the object to which an entry point of an installed package refers."""
    register_method(method_class)


METHODS.adopt = _adopt


def _lacking(method_class: type[Method[Any]]) -> list[str]:
    """The parts that a class must still define to be a method."""
    lacking = sorted(method_class.__abstractmethods__)
    settings = getattr(method_class, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, MethodSettings)):
        lacking.append("Settings (a subclass of MethodSettings)")
    else:
        name = settings.model_fields["name"]
        if get_args(name.annotation) != (name.default,):
            lacking.append('a name in its Settings (`name: Literal["mine"] = "mine"`)')
    if not isinstance(getattr(method_class, "label", None), str):
        lacking.append('label (what figures call it, such as `label = "NTK-DFL"`)')
    look: object = method_class.look
    if not isinstance(look, LineStyle | None):
        lacking.append("look (a LineStyle, or None for a spare one)")
    return lacking


for _method in (
    NtkDfl,
    DPsgd,
    Dfedavg,
    Dfedavgm,
    Dfedsam,
    Dispfl,
    Fedavg,
    Local,
    NtkFl,
    AverageGd,
    QgDsgdm,
    Oledfl,
    Dfedadmm,
    KGt,
    SparkStyle,
):
    register_method(_method)
