"""The Python interface: load a configuration, run it in this process, read its record.

`mpi_ntkdfl/__init__.py` exports these names. Runs on several ranks are started from the command line;
their records are read here in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_ntkdfl import presets
from mpi_ntkdfl.analysis import tables, traces
from mpi_ntkdfl.config import Config, parse
from mpi_ntkdfl.loggers import all_of
from mpi_ntkdfl.metrics import ROUNDS
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.registry import unknown
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage.outputs import Outputs

if TYPE_CHECKING:
    import pandas
    import torch

    from mpi_ntkdfl.simulation import Progress


def load_config(source: str | Path = "quickstart", **settings: Any) -> Config:
    """Reads a preset or a YAML file, and applies settings on top of it.

    >>> config = load_config("quickstart", clients=16, algorithm={"lr": 0.02})
    >>> config.clients, config.algorithm.name
    (16, 'ntk-dfl')
    >>> load_config(**{"topology.degree": 3}).topology.degree
    3

    Args:
        source: name of a preset, or path of a YAML file.
        **settings: keys and values as in a file; the value of a section is a mapping. A key may be
            dotted, such as `"topology.degree"`. A mapping changes the named keys of a section and leaves
            the others, as `--set` does.

    Raises:
        InputError: if the source cannot be read, or if settings are wrong; the message lists all of them.
    """
    layer: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        mapping = layer
        for section in sections:
            mapping = mapping.setdefault(section, {})
            if not isinstance(mapping, dict):
                raise InputError(f"{key} contradicts {section}, which is given as {mapping!r}")
        if isinstance(value, Mapping) and isinstance(mapping.get(last), dict):
            mapping[last] = {**mapping[last], **value}
        else:
            mapping[last] = dict(value) if isinstance(value, Mapping) else value
    return parse([*presets.read_source(str(source)), layer])


def run(
    config: Config,
    path: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    callbacks: Iterable[Callable[[Progress], None]] = (),
) -> RunRecord:
    """Runs a configuration in this process, without MPI, and returns its record.

    The results have the same bits as those of this configuration under `mpirun` with any number of ranks.

    Args:
        config: the run's configuration.
        path: path of the record, `RUN.h5`. Missing folders are made. Checkpoints are written into the
            same folder.
        overwrite: replaces a record that exists, and its checkpoints.
        resume: continues a run that exists; if none exists, a new run begins.
        callbacks: functions that are called at the start and after every round with the run's progress
            (`simulation.Progress`).

    Raises:
        InputError: if the input is wrong, for example if the record exists. No file has been changed
            then.
        SimulationError: if the computation fails, for example because a client diverges.
    """
    # Imported here, because a program that only reads records should start without torch.
    import torch

    from mpi_ntkdfl import simulation
    from mpi_ntkdfl.comm.world import SoloWorld

    if not isinstance(config, Config):
        raise InputError(
            f"a run needs a configuration, got {config!r:.80}; make one with load_config(...)"
        )
    if overwrite and resume:
        raise InputError("overwrite and resume cannot be used together; choose one of them")
    mode: simulation.Mode = "overwrite" if overwrite else "resume" if resume else "new"
    outputs, threads = Outputs.at(user_path(str(path), "path")), torch.get_num_threads()
    try:
        simulation.run(config, SoloWorld(), outputs, mode, all_of(callbacks))
    finally:
        torch.set_num_threads(threads)  # a run sets `compute.threads`
    return open_record(outputs.record)


def open_record(path: str | Path) -> RunRecord:
    """Reads the record of a run, which may be finished, still running, or killed.

    Args:
        path: path of the record, `RUN.h5`.

    Raises:
        InputError: if the file is missing, damaged, or not a record.
    """
    return RunRecord(user_path(str(path), "path"))


class RunRecord:
    """A record in memory. Weights are read from the newest checkpoint when they are asked for.

    Attributes:
        path: path of the record.
        attributes: texts about the run, such as its versions, hosts and starts.
    """

    def __init__(self, path: Path) -> None:
        """Reads the record; see `open_record`."""
        self.path = path
        self._run = tables.read(path)
        self._trace = traces.trace(self._run, str(path))
        self.attributes: dict[str, str] = dict(self._run.attributes)

    def __repr__(self) -> str:
        """The path and the number of rounds done."""
        done, rounds = tables.rounds_of(self._run)
        return f"<RunRecord {self.path}: {done} of {rounds} rounds>"

    @property
    def config(self) -> Config:
        """The configuration of the run.

        Raises:
            InputError: if the configuration names something from a plugin that is not loaded.
        """
        return parse([read_yaml(self.attributes["config"], f"the configuration in {self.path}")])

    def table(self) -> dict[str, np.ndarray]:
        """One array `[row]` per metric, with one row per evaluated round. `plot` uses the same names.

        `rounds` is the number of rounds done. Metrics of clients are means over clients. Bytes and
        seconds are sums from the start of the run to the row.
        """
        return {ROUNDS.name: self._trace.rounds, **self._trace.curves}

    def frame(self) -> pandas.DataFrame:
        """The same table as a data frame of pandas, which must be installed.

        Raises:
            InputError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError(
                "frame() needs the package pandas: install it, or use table(), which has the same columns"
            ) from error
        return pandas.DataFrame(self.table())

    def clients(self, metric: str) -> np.ndarray:
        """The values `[row, client]` of a metric that is measured on each client's own model.

        Args:
            metric: the metric's name, such as `client-accuracy`.

        Raises:
            InputError: if the record has no such metric; the message lists those that it has.
        """
        by_client = {
            each.name
            for each in self._run.metrics.values()
            if each.by_client and self._run.has(each)
        }
        if metric not in by_client:
            raise InputError(unknown("metric by client", metric, by_client))
        return self._run[metric][: len(self._trace.rounds)]

    def weights(self, client: int) -> dict[str, torch.Tensor]:
        """A client's weights at the newest checkpoint, as a state_dict of torch.

        Args:
            client: the client's number, from 0.

        Raises:
            InputError: if there is no checkpoint, if it belongs to another run, or if there is no such
                client.
        """
        return self._state_dict(client)

    def average(self) -> dict[str, torch.Tensor]:
        """The mean of all clients' weights at the newest checkpoint, as a state_dict of torch.

        Raises:
            InputError: if there is no checkpoint, or if it belongs to another run.
        """
        return self._state_dict(None)

    def _state_dict(self, client: int | None) -> dict[str, torch.Tensor]:
        from mpi_ntkdfl.storage.checkpoint import newest, state_dict
        from mpi_ntkdfl.storage.identity import require_record_of

        outputs = Outputs.at(self.path)
        with newest(outputs) as checkpoint:
            require_record_of(outputs, checkpoint)
            return state_dict(checkpoint, client)
