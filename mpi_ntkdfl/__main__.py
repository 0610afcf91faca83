"""`python -m mpi_ntkdfl`."""

from mpi_ntkdfl.cli import main

main()
