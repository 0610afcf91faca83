"""The multilayer perceptron, with fast special forms of all computations of a network."""

from mpi_ntkdfl.model.mlp.network import MLP

__all__ = ["MLP"]
