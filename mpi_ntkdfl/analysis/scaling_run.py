"""Does the runs of a scaling study, one launch after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.analysis.scaling import Kind
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.runtime.launching import Launch
from mpi_ntkdfl.storage import identity
from mpi_ntkdfl.topology.placement import Placement


def plan(config: Config, kind: Kind, ranks: Sequence[int]) -> dict[int, Config]:
    """The configuration to run on each number of ranks, ascending.

    A strong study has the given configuration on all ranks. A weak study has `clients` times the number
    of ranks; the partition must then say how many samples a client has, so that its work stays the same.

    Raises:
        InputError: if there are more ranks than clients, or a weak study's work would not stay the same.
    """
    ranks = sorted(set(ranks))
    if kind == "strong":
        Placement(config.clients, ranks[-1])
        return dict.fromkeys(ranks, config)
    if getattr(config.partition, "samples", None) is None:
        raise InputError(
            "a weak study keeps the work of a client while clients grow with ranks: set "
            f"partition.samples with kind dirichlet, got kind {config.partition.kind}"
        )
    if config.topology.kind in ("complete", "star", "file"):
        raise InputError(
            "a weak study keeps neighbourhoods while clients grow with ranks, got topology.kind "
            f"{config.topology.kind}; choose regular, ring, grid or small-world"
        )
    return {r: config.model_copy(update={"clients": config.clients * r}) for r in ranks}


def run(
    planned: dict[int, Config],
    kind: Kind,
    folder: Path,
    words: Sequence[str],
    say: Callable[[str], None],
) -> list[Path]:
    """Launches the runs that are not finished; returns all records.

    Args:
        planned: configurations by ranks.
        kind: the kind of the study.
        folder: the folder of the records `KIND-RANKS.h5`; it is made if it does not exist.
        words: the words of the launcher's command.
        say: function that is called with one line per run.

    Raises:
        InputError: if the folder cannot be used, or the launcher cannot be started.
        SimulationError: if a launch fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; choose another -o") from error
    records = []
    for ranks, config in planned.items():
        record = folder / f"{kind}-{ranks}.h5"
        records.append(record)
        if finished(record, config):
            say(f"{record}: finished before")
            continue
        say(f"{record}: {ranks} ranks, {config.clients} clients, {config.rounds} rounds")
        if not Launch(tuple(words), ranks).run(config.to_yaml(), record):
            raise SimulationError(f"{record}: the run stopped early; the same command goes on")
    return records


def finished(record: Path, config: Config) -> bool:
    """Whether the record holds all rounds of this configuration, with files of the same content."""
    if not record.exists():
        return False
    run = tables.read(record)
    done, rounds = tables.rounds_of(run)
    same = run.config == yaml.safe_load(config.to_yaml())
    if same and "contents" in run.attributes:
        data = run.attributes["data"]
        if sources.content(config.dataset) is not None:
            data = sources.load(config.dataset).fingerprint()
        same = identity.contents(config, data) == json.loads(run.attributes["contents"])
    return same and done >= rounds
