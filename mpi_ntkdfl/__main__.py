"""Entry point of `python -m mpi_ntkdfl` and of the console command `mpi-ntkdfl`."""

import atexit
import gc
import sys
from typing import NoReturn

from mpi_ntkdfl.runtime.stopping import nothing_to_save, watch_signals


def start() -> NoReturn:
    """Calls the command line; never returns."""
    # A batch system may signal while libraries still load, which takes seconds.
    if sys.argv[1:2] in ([], ["run"]):
        watch_signals()
        nothing_to_save(True)
    else:
        # Nearly all objects of an import stay. To look for garbage among them, while libraries load and
        # at the end, took a fifth of the time of `show`.
        gc.set_threshold(50_000)
        atexit.register(gc.freeze)
    from mpi_ntkdfl.cli.main import main

    main()


if __name__ == "__main__":
    start()
