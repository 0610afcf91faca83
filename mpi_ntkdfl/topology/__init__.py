"""Which clients communicate in each round, and which rank owns which clients. This folder uses no MPI."""
