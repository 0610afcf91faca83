"""The methods, by the name a configuration calls them."""

from mpi_ntkdfl.algorithms.average_gd import AverageGd
from mpi_ntkdfl.algorithms.base import Method
from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl
from mpi_ntkdfl.algorithms.ntk_fl import NtkFl

METHODS: dict[str, type[Method]] = {
    "ntk-dfl": NtkDfl,
    "ntk-fl": NtkFl,
    "average-gd": AverageGd,
}
