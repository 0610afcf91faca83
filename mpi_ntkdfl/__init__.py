"""Decentralized federated learning with neural tangent kernels, simulated on MPI ranks.

The Python interface:

    import mpi_ntkdfl as nd

    config = nd.load_config("quickstart", clients=16)
    record = nd.run(config, "a.h5")                # in this process, one rank
    record.table()["accuracy"]

- `load_config`, `run`, `open_record` handle configurations, runs and records (`api.py`).
- `kernel` and `jacobian` take any module of torch, and need no run.
- `register_network`, `register_dataset`, `register_method`, `register_metric` and `register_codec` add
  something under a name that configurations may then use. A file that calls them is a plugin:
  `run --plugin FILE.py`.
- `CsvLog`, `JsonLinesLog`, `TensorBoardLog`, `WandbLog` and `MlflowLog` are callbacks of `run`: they send
  a run's numbers elsewhere while it runs.
- `InputError` and `SimulationError` are the exceptions that these functions raise.

Importing the package loads neither torch nor MPI. A name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mpi_ntkdfl.algorithms import register_method as register_method
    from mpi_ntkdfl.api import RunRecord as RunRecord
    from mpi_ntkdfl.api import load_config as load_config
    from mpi_ntkdfl.api import open_record as open_record
    from mpi_ntkdfl.api import run as run
    from mpi_ntkdfl.data.sources import register_dataset as register_dataset
    from mpi_ntkdfl.federation.codecs import register_codec as register_codec
    from mpi_ntkdfl.loggers import CsvLog as CsvLog
    from mpi_ntkdfl.loggers import JsonLinesLog as JsonLinesLog
    from mpi_ntkdfl.loggers import MlflowLog as MlflowLog
    from mpi_ntkdfl.loggers import TensorBoardLog as TensorBoardLog
    from mpi_ntkdfl.loggers import WandbLog as WandbLog
    from mpi_ntkdfl.metrics import register_metric as register_metric
    from mpi_ntkdfl.model.module.operators import jacobian as jacobian
    from mpi_ntkdfl.model.module.operators import kernel as kernel
    from mpi_ntkdfl.model.networks import register_network as register_network
    from mpi_ntkdfl.runtime.errors import InputError as InputError
    from mpi_ntkdfl.runtime.errors import SimulationError as SimulationError

_HOMES = {
    "load_config": "api",
    "run": "api",
    "open_record": "api",
    "RunRecord": "api",
    "kernel": "model.module.operators",
    "jacobian": "model.module.operators",
    "register_network": "model.networks",
    "register_dataset": "data.sources",
    "register_method": "algorithms",
    "register_metric": "metrics",
    "register_codec": "federation.codecs",
    "CsvLog": "loggers",
    "JsonLinesLog": "loggers",
    "TensorBoardLog": "loggers",
    "WandbLog": "loggers",
    "MlflowLog": "loggers",
    "InputError": "runtime.errors",
    "SimulationError": "runtime.errors",
}
"""The module in which each public name is defined."""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - names as text


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
