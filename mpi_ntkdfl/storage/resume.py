"""Resuming: from which checkpoint a run goes on, and whether it is still the same run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from mpi_ntkdfl.config import Config, effect, parse
from mpi_ntkdfl.metrics import ACCURACY, BYTES, ROUNDS
from mpi_ntkdfl.runtime import identity as own_identity
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage import identity, trace
from mpi_ntkdfl.storage.checkpoint import Checkpoint, newest
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.record import last_choices, read_all
from mpi_ntkdfl.storage.schema import FILES, end_of_run, starts_of

_log = logging.getLogger(__name__)

_VERSIONS = {
    "compute.evolution": ("evolution", "outputs were evolved"),
    "compute.training": ("local training", "local steps were taken"),
}
"""Settings that choose a compiled or a tensor version, with the record's name and what it computes."""

_WAY_OUT = (
    "go on with the settings it was started with, or give --overwrite or another -o to start again"
)


@dataclass(frozen=True)
class Start:
    """A run to resume, on rank 0.

    Attributes:
        checkpoint: the checkpoint, open and verified.
        run: id of the run; empty if an earlier version wrote its files.
        partition: recorded offsets and indices of the partition.
        contents: recorded SHA-256 of the files, by the names in `schema.FILES`.
        edges: recorded edges of the last finished round's graph, `[edge, 2]`.
        choices: the ways of computing at the last start, by the name of the choice.
        last: the round after which the run is finished, as far as its rows up to the checkpoint tell.
        sent: protocol bytes of the rounds up to the checkpoint.
    """

    checkpoint: Checkpoint
    run: str
    partition: tuple[np.ndarray, np.ndarray]
    contents: Mapping[str, str]
    edges: np.ndarray
    choices: Mapping[str, str]
    last: int = 0
    sent: int = 0

    def compare_choices(self, choices: Mapping[str, str]) -> None:
        """Warns if this start computes in other ways than the last one.

        Raises:
            InputError: if another version of the evolution or of local training would be used.
        """
        for setting, (choice, did) in _VERSIONS.items():
            # Records without this choice come from versions that had the tensor version only.
            before = self.choices.get(choice, "tensor").partition(":")[0]
            now = choices.get(choice, before)
            if now.partition(":")[0] != before:
                raise InputError(
                    f"cannot go on: {did} by the {before} version, and this start would take another one "
                    f"({now}); give --set {setting}={before}, or --overwrite to start again"
                )
        for name, old in self.choices.items():
            new = choices.get(name, old)
            if old.partition(":")[0] != new.partition(":")[0]:
                _log.warning(
                    "%s: were %s, are %s: the last bits of the result may differ", name, old, new
                )

    def compare(
        self,
        partition: tuple[np.ndarray, np.ndarray],
        contents: Mapping[str, str],
        edges: np.ndarray,
    ) -> None:
        """Compares what was read and drawn again with what is recorded.

        Args:
            partition: offsets and indices.
            contents: SHA-256 of the files. The file of starting weights may be missing, because the
                checkpoint holds all weights.
            edges: edges of the last finished round's graph.

        Raises:
            InputError: if anything differs.
        """
        differing = {
            "the partition": not all(map(np.array_equal, self.partition, partition)),
            "the data set": self.contents["data"] != contents["data"],
            "the graph of the last round": not np.array_equal(self.edges, edges),
        }
        for what, differs in differing.items():
            if differs:
                raise InputError(
                    f"cannot go on: {what} is not the recorded one; take the files and the versions of "
                    "numpy and networkx (which draw partitions and graphs) with which it was started, "
                    "or give --overwrite or another -o to start again"
                )
        for name in ("regions", "trace"):
            former, now = (each.get(name) for each in (self.contents, contents))
            if former != now:
                raise InputError(
                    f"cannot go on: the file of {FILES[name]} is not the one that the run began "
                    f"with; {_WAY_OUT}"
                )
        former, now = (each.get("weights") for each in (self.contents, contents))
        if former and now and former != now:
            raise InputError(
                "cannot go on: the file of model.weights is not the one that the run began with "
                f"(SHA-256 was {former[:12]}, is {now[:12]}); {_WAY_OUT}, or move that file away, since "
                "a run that goes on does not need it"
            )


def finished_without_weights(outputs: Outputs, config: Config, killed: bool) -> int | None:
    """Decides what to do with a record that has no checkpoints.

    Args:
        outputs: the files of the run.
        config: the configuration that the user asks for.
        killed: whether the last start was killed, perhaps before it could write a checkpoint.

    Returns:
        The number of rounds of a finished record whose checkpoints were deleted. None if there is a
        checkpoint, or if a new start would lose nothing.

    Raises:
        InputError: if the record is unfinished and its checkpoints were deleted, if it is damaged,
            or if `config` belongs to another run.
    """
    if outputs.existing() != [outputs.record]:
        return None
    with _open_record(outputs) as file:
        recorded, done = str(file.attrs["config"]), len(file["topology/offsets"]) - 1
        former = _refuse_changes(recorded, config, done)
        planned, wanted = (_last_round(file, each, done) for each in (former, config))
    # A round is recorded before its checkpoint is written.
    if done <= former.output.checkpoint_every and (killed or done < planned):
        _log.info("%s has no checkpoint yet: starting again", outputs.record)
        return None
    if done >= max(planned, wanted):
        _log.warning("%s is finished, but its checkpoints are missing", outputs.record)
        return done
    raise InputError(
        f"{outputs.record} holds {done} rounds, but its checkpoints are missing, so the run cannot go "
        "on; give --overwrite to start again, or choose another -o"
    )


@contextmanager
def find_start(outputs: Outputs, config: Config) -> Iterator[Start | None]:
    """Yields the run to resume from its newest undamaged checkpoint; None if it has no checkpoint yet.

    Raises:
        InputError: if all checkpoints or the record are damaged, or if `config` belongs to another run.
    """
    if outputs.existing() in ([], [outputs.record]):
        yield None
        return
    with newest(outputs) as checkpoint:
        former = _refuse_changes(checkpoint.config, config, checkpoint.round)
        if (former.model.weights is None) != (config.model.weights is None):
            old, new = former.model.weights, config.model.weights
            raise InputError(
                f"cannot go on with a changed configuration: model.weights was {old}, is {new}; "
                f"{_WAY_OUT}"
            )
        yield _read_start(outputs, checkpoint, former, config)


def _read_start(outputs: Outputs, checkpoint: Checkpoint, former: Config, config: Config) -> Start:
    """Reads what the record says about the rounds before.

    Args:
        outputs: the files of the run.
        checkpoint: the checkpoint from which the run goes on.
        former: the checkpoint's configuration.
        config: the configuration that the user asks for.
    """
    done = checkpoint.round
    with _open_record(outputs) as file:
        read_all(file)
        planned = _require_one_run(outputs, checkpoint, former, file).rounds
        if config.rounds == done != planned:  # the round may have no row: it was not to be the last
            raise InputError(
                f"{done} rounds of {planned} are done already; rounds can only be changed to more than "
                f"{done}"
            )
        _warn_of_other_code(file, done)
        offsets = file["topology/offsets"][:]
        rounds = len(offsets) - 1
        if rounds < done:
            raise InputError(
                f"{outputs.record} holds {rounds} rounds and its checkpoint {done}, so they do not "
                "belong together; give --overwrite to start again"
            )
        return Start(
            checkpoint,
            identity.run_of(file),
            (file["partition/offsets"][:], file["partition/indices"][:]),
            identity.recorded(file),
            file["topology/edges"][offsets[done - 1] : offsets[done]],
            last_choices(file),
            _last_round(file, config, done),
            int(file[BYTES.dataset][:done].sum()),
        )


def _last_round(file: h5py.File, config: Config, done: int) -> int:
    """The round after which a run is finished, as far as the record's rows until `done` rounds tell."""
    rounds = file[ROUNDS.dataset][:]
    accuracy = file[ACCURACY.dataset][: len(rounds)]
    kept = rounds[: len(accuracy)] <= done
    return end_of_run(config.rounds, config.stop_at, rounds[: len(accuracy)][kept], accuracy[kept])


def _require_one_run(
    outputs: Outputs, checkpoint: Checkpoint, former: Config, file: h5py.File
) -> Config:
    """Checks that record, checkpoint and timeline belong to the same run.

    Args:
        outputs: the files of the run.
        checkpoint: the checkpoint from which the run goes on.
        former: the checkpoint's configuration.
        file: the record.

    Returns:
        The record's configuration.

    Raises:
        InputError: if they belong to different runs; the message names two files.
    """
    record = identity.run_of(file)
    identity.require_one_run(outputs, record, checkpoint.run, checkpoint.path)
    identity.require_one_run(outputs, record, trace.run_of(outputs.trace), outputs.trace)
    # Files of earlier versions have no id. They are compared by those settings that may not change.
    recorded = _configuration(str(file.attrs["config"]))
    changes = differences(recorded.model_dump(mode="json"), former.model_dump(mode="json"))
    if wrong := [key for key in changes if not may_change(key, recorded)]:
        raise InputError(
            f"{outputs.record} and {checkpoint.path} are from different runs, so they do not belong "
            f"together: they differ in {', '.join(wrong)}; put the files of one run back, or give "
            "--overwrite to start again"
        )
    return recorded


def _warn_of_other_code(file: h5py.File, done: int) -> None:
    """Warns if the last start ran other sources of the package, or other plugins.

    The record holds the hashes of every start's code, and the number of rounds done before that start.
    """
    last = starts_of(file.attrs)[-1]
    former, now = str(last.get("sources", "")), own_identity.own()["sources"]
    if former and former != now:
        _log.warning(
            "the package's sources have changed since the last start (SHA-256 was %s, is %s): the rounds "
            "after round %d may be computed in another way",
            *(former[:12], now[:12], done),
        )
    if str(last.get("plugins", "[]")) != plugins.as_json(plugins.loaded()):
        _log.warning(
            "the plugins have changed since the last start (their hashes differ): the rounds after "
            "round %d may be computed in another way",
            done,
        )


@contextmanager
def _open_record(outputs: Outputs) -> Iterator[h5py.File]:
    """Opens the record for reading. Errors that a damaged file causes become an InputError."""
    try:
        with reading(outputs.record) as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{outputs.checkpoint} exists, but the record {outputs.record} is missing, so the run cannot "
            "go on; give --overwrite to start again"
        ) from error
    except Exception as error:  # for a damaged file h5py can raise almost any exception
        raise InputError(
            f"{outputs.record} is not a readable record ({error}); give --overwrite to start again"
        ) from error


def _configuration(recorded: str) -> Config:
    return parse([read_yaml(recorded, "the recorded configuration")])


def _refuse_changes(recorded: str, config: Config, done: int) -> Config:
    """Compares the recorded configuration with the one that the user asks for.

    Args:
        recorded: the recorded configuration as YAML.
        config: the configuration that the user asks for.
        done: number of rounds done.

    Returns:
        The recorded configuration.

    Raises:
        InputError: if a setting changed on which the result depends, or if `rounds` is below `done`.
    """
    former = _configuration(recorded)
    changes = differences(former.model_dump(mode="json"), config.model_dump(mode="json"))
    refused = {k: v for k, v in changes.items() if not may_change(k, config)}
    if refused:
        listed = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in refused.items())
        raise InputError(f"cannot go on with a changed configuration: {listed}; {_WAY_OUT}")
    if config.rounds < done:
        raise InputError(
            f"rounds must be at least {done}, because so many are done; got {config.rounds}"
        )
    for key, (old, new) in changes.items():
        if effect(key, config) == "rounding":
            _log.warning("%s was %s, is %s: the last bits of the result may differ", key, old, new)
    return former


def may_change(setting: str, config: Config | None = None) -> bool:
    """Whether a resumed run may have another value of a setting.

    Paths may change, because data, partition and graph are compared by content, and a resumed run starts
    from the weights of its checkpoint. The number of rounds may grow, and so may the accuracy at which
    the run ends. The settings of evaluation may not change, because then the rows of one record would
    differ.
    """
    return setting in ("rounds", "stop_at") or effect(setting, config) in (
        "rounding",
        "place",
        "nothing",
    )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], above: str = ""
) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two configurations, as `section.key`: (old, new)."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        one, other, where = old.get(key), new.get(key), f"{above}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            changed |= differences(one, other, f"{where}.")
        elif one != other:
            changed[where] = one, other
    return changed
