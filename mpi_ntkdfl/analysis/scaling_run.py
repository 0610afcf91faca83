"""Does the runs of a scaling study, one launch after the other."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.analysis.files import replacing
from mpi_ntkdfl.analysis.scaling import Kind
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.runtime.launching import run_command
from mpi_ntkdfl.topology.placement import Placement


def plan(config: Config, kind: Kind, ranks: Sequence[int]) -> dict[int, Config]:
    """The configuration to run on each number of ranks, ascending.

    Strong: the one given. Weak: `clients` times the ranks; so that a client's work stays what it is,
    the partition must say how many samples a client has.

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
        kind: of the study.
        folder: for `KIND-RANKS.yaml` and `.h5`; made if need be.
        words: of the launcher.
        say: gets a line a run.

    Raises:
        InputError: if the folder cannot be used.
        SimulationError: if a launch fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; choose another -o") from error
    records = []
    for ranks, config in planned.items():
        source, record = (folder / f"{kind}-{ranks}{suffix}" for suffix in (".yaml", ".h5"))
        records.append(record)
        if finished(record, config):
            say(f"{record}: finished before")
            continue
        with replacing(source) as temporary:
            temporary.write_text(config.to_yaml(), encoding="utf-8")
        say(f"{record}: {ranks} ranks, {config.clients} clients, {config.rounds} rounds")
        command = run_command(words, ranks, source, record)
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        except OSError as error:
            raise InputError(f"cannot start {command[0]}: {error.strerror}") from error
        if done.returncode:
            raise SimulationError(
                f"{record}: the launch ended with exit code {done.returncode}; the same command goes on"
            )
    return records


def finished(record: Path, config: Config) -> bool:
    """Whether the record holds all rounds of this configuration."""
    if not record.exists():
        return False
    found = tables.read(record)
    done, rounds = tables.rounds_of(found)
    same = found.config == yaml.safe_load(config.to_yaml())
    return same and done >= rounds
