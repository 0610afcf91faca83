"""The methods, by the name a configuration calls them."""

from mpi_ntkdfl.algorithms.base import Method
from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl

METHODS: dict[str, type[Method]] = {
    "ntk-dfl": NtkDfl,
}
