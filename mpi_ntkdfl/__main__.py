"""Entry point of `python -m mpi_ntkdfl` and of the console command `mpi-ntkdfl`."""

import sys
from typing import NoReturn

from mpi_ntkdfl.runtime.stopping import nothing_to_save, watch_signals


def start() -> NoReturn:
    """Calls the command line; never returns."""
    # A batch system may signal while libraries still load, which takes seconds.
    if sys.argv[1:2] in ([], ["run"]):
        watch_signals()
        nothing_to_save(True)
    from mpi_ntkdfl.cli.main import main

    main()


if __name__ == "__main__":
    start()
