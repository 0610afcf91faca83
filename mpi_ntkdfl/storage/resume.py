"""Where a run goes on: from which checkpoint, and whether it is still the same run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.config import Config, parse, read_yaml
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading
from mpi_ntkdfl.storage.checkpoint import Checkpoint, newest
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.record import last_choices, read_all

_log = logging.getLogger(__name__)

# Nothing of the result depends on these. Data are compared by content, not by where they are.
_FREE = (
    *("rounds", "output.", "dataset.root", "partition.path", "topology.path"),
    # The version that evolves is recorded with the other choices, and compared there.
    *("compute.gpu_aware_mpi", "compute.evolution"),
)
# These may change the rounding of sums, so the last bits.
_ROUNDING = (
    *("compute.device", "compute.threads", "compute.memory_limit", "compute.batch"),
    "compute.byte_products",
)

_WAY_OUT = (
    "go on with the settings it was started with, or give --overwrite or another -o to start again"
)


@dataclass(frozen=True)
class Start:
    """A run to go on with, on rank 0.

    Attributes:
        checkpoint: open and verified.
        partition: offsets and indices of the recorded partition.
        data: fingerprint of the recorded data set.
        edges: of the last finished round's graph, `[edge, 2]`.
        choices: which ways of computing the last start took, by the name of the choice.
    """

    checkpoint: Checkpoint
    partition: tuple[np.ndarray, np.ndarray]
    data: str
    edges: np.ndarray
    choices: Mapping[str, str]

    def compare_choices(self, choices: Mapping[str, str]) -> None:
        """Warns if this start takes other ways of computing than the last one.

        Raises:
            InputError: if outputs would be evolved by another version.
        """
        # Records without the choice are of versions that had tensors only.
        before = self.choices.get("evolution", "tensor").partition(":")[0]
        now = choices.get("evolution", before)
        if now.partition(":")[0] != before:
            raise InputError(
                f"cannot go on: outputs were evolved by the {before} version, and this start would take "
                f"another one ({now}); give --set compute.evolution={before}, or --overwrite to start "
                "again"
            )
        for name, old in self.choices.items():
            new = choices.get(name, old)
            if old.partition(":")[0] != new.partition(":")[0]:
                _log.warning(
                    "%s: were %s, are %s: the last bits of the result may differ", name, old, new
                )

    def compare(
        self, partition: tuple[np.ndarray, np.ndarray], data: str, edges: np.ndarray
    ) -> None:
        """Holds what was read and drawn anew to what is recorded.

        Args:
            partition: offsets and indices.
            data: fingerprint of the data set.
            edges: of the last finished round's graph.

        Raises:
            InputError: if anything differs.
        """
        differing = {
            "the partition": not all(map(np.array_equal, self.partition, partition)),
            "the data set": self.data != data,
            "the graph of the last round": not np.array_equal(self.edges, edges),
        }
        for what, differs in differing.items():
            if differs:
                raise InputError(
                    f"cannot go on: {what} is not the recorded one; have files changed, or the "
                    "versions of numpy and networkx that drew it?"
                )


@contextmanager
def find_start(outputs: Outputs, config: Config) -> Iterator[Start | None]:
    """Finds the newest whole checkpoint of a run; None if there is no checkpoint yet.

    Raises:
        InputError: if the checkpoints or the record are damaged, or `config` is that of another run.
    """
    if outputs.existing() in ([], [outputs.record]):
        if outputs.existing():
            with _open_record(outputs) as file:
                _refuse_changes(str(file.attrs["config"]), config, 0)
            _log.info("%s has no checkpoint yet: starting again", outputs.record)
        yield None
        return
    with newest(outputs) as checkpoint:
        _refuse_changes(checkpoint.config, config, checkpoint.round)
        yield _read_start(outputs, checkpoint, config.rounds)


def _read_start(outputs: Outputs, checkpoint: Checkpoint, wanted: int) -> Start:
    """Reads what the record says of the rounds before; `wanted` is how many the run shall have."""
    done = checkpoint.round
    with _open_record(outputs) as file:
        read_all(file)
        planned = read_yaml(str(file.attrs["config"]), "the recorded configuration")["rounds"]
        if wanted == done != planned:  # its last row may be missing, if not every round has one
            raise InputError(
                f"{done} rounds of {planned} are done already: rounds may change only to more than that"
            )
        offsets = file["topology/offsets"][:]
        rounds = len(offsets) - 1
        if rounds < done:
            raise InputError(
                f"{outputs.record} holds {rounds} rounds, its checkpoint {done}: they do not belong "
                "together; give --overwrite to start again"
            )
        return Start(
            checkpoint,
            (file["partition/offsets"][:], file["partition/indices"][:]),
            str(file.attrs["data"]),
            file["topology/edges"][offsets[done - 1] : offsets[done]],
            last_choices(file),
        )


@contextmanager
def _open_record(outputs: Outputs) -> Iterator[h5py.File]:
    """Opens the record to read; what fails over a damaged file becomes an InputError."""
    try:
        with reading(outputs.record) as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{outputs.checkpoint} has no record {outputs.record} to go on with; give --overwrite to "
            "start again"
        ) from error
    except Exception as error:  # over a damaged file h5py raises almost anything
        raise InputError(
            f"{outputs.record} is no readable record ({error}); give --overwrite to start again"
        ) from error


def _refuse_changes(recorded: str, config: Config, done: int) -> None:
    """Compares configurations; says what changed.

    Raises:
        InputError: if anything changed that the result depends on, or `rounds` fell below `done`.
    """
    methods = {name: method.Settings for name, method in METHODS.items()}
    former = parse([read_yaml(recorded, "the recorded configuration")], methods)
    changes = differences(former.model_dump(mode="json"), config.model_dump(mode="json"))
    refused = {k: v for k, v in changes.items() if not k.startswith((*_FREE, *_ROUNDING))}
    if refused:
        listed = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in refused.items())
        raise InputError(f"cannot go on with a changed configuration: {listed}; {_WAY_OUT}")
    if config.rounds < done:
        raise InputError(
            f"rounds may grow, not fall below the {done} that are done; got {config.rounds}"
        )
    for key, (old, new) in changes.items():
        if key.startswith(_ROUNDING):
            _log.warning("%s was %s, is %s: the last bits of the result may differ", key, old, new)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], above: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, as `section.key`: (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        one, other, where = old.get(key), new.get(key), f"{above}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differences(one, other, f"{where}.")
        elif one != other:
            found[where] = one, other
    return found
