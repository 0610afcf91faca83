"""The multilayer perceptron with its own fast forms of everything a network does."""

from mpi_ntkdfl.model.mlp.network import MLP

__all__ = ["MLP"]
