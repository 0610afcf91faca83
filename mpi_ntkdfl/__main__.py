"""`python -m mpi_ntkdfl`."""

import sys

from mpi_ntkdfl.runtime.stopping import nothing_to_save, watch_signals

# Loading libraries takes seconds, and a batch system may send a signal during this time.
if sys.argv[1:2] in ([], ["run"]):
    watch_signals()
    nothing_to_save(True)

from mpi_ntkdfl.cli.main import main  # noqa: E402

main()
