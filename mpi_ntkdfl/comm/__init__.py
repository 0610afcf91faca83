"""Ranks and messages: the only folder that imports mpi4py."""
