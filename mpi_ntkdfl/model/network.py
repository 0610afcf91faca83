"""What the rest of the package sees of a network."""

from __future__ import annotations

from mpi_ntkdfl.model.mlp import MLP

Network = MLP
