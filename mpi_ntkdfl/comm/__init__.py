"""Transport between ranks. This is the only folder that imports mpi4py."""
