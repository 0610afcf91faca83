"""The mathematics: Jacobians, kernel, evolution, update. No MPI."""
