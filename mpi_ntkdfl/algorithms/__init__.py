"""The methods, by the name a configuration calls them."""

from typing import Any

from mpi_ntkdfl.algorithms.average_gd import AverageGd
from mpi_ntkdfl.algorithms.base import Method
from mpi_ntkdfl.algorithms.d_psgd import DPsgd
from mpi_ntkdfl.algorithms.dfedavg import Dfedavg
from mpi_ntkdfl.algorithms.dfedavgm import Dfedavgm
from mpi_ntkdfl.algorithms.dfedsam import Dfedsam
from mpi_ntkdfl.algorithms.dispfl import Dispfl
from mpi_ntkdfl.algorithms.fedavg import Fedavg
from mpi_ntkdfl.algorithms.local import Local
from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl
from mpi_ntkdfl.algorithms.ntk_fl import NtkFl
from mpi_ntkdfl.runtime.registry import Registry

_OWN: dict[str, type[Method[Any]]] = {
    "ntk-dfl": NtkDfl,
    "d-psgd": DPsgd,
    "dfedavg": Dfedavg,
    "dfedavgm": Dfedavgm,
    "dfedsam": Dfedsam,
    "dispfl": Dispfl,
    "fedavg": Fedavg,
    "local": Local,
    "ntk-fl": NtkFl,
    "average-gd": AverageGd,
}

METHODS: Registry[type[Method[Any]]] = Registry("method", _OWN, group="mpi_ntkdfl.methods")
"""The only list of methods."""

METHODS.adopt = METHODS.register
