"""Decentralized federated learning with neural tangent kernels, simulated on MPI ranks."""

__version__ = "0.1.0"
