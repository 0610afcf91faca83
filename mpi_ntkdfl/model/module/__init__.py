"""Any module of torch as a network, with the derivatives that torch computes."""

from mpi_ntkdfl.model.module.network import ModuleNetwork

__all__ = ["ModuleNetwork"]
