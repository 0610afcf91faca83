"""Any module of torch as a network, by torch's own derivatives."""

from mpi_ntkdfl.model.module.network import ModuleNetwork

__all__ = ["ModuleNetwork"]
