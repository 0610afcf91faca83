"""A run that can be computed with: its data, its network and its clients' weights.

Checkpoints hold the weights after the last two rounds. Starting weights are drawn again from the seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import h5py
import numpy as np
import torch

from mpi_ntkdfl.assembly import read_weights, starting_weights
from mpi_ntkdfl.config import Config, parse
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.federation.clients import Samples
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.networks import build
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading, sane
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage.checkpoint import Checkpoint
from mpi_ntkdfl.storage.checkpoint import newest as newest_checkpoint
from mpi_ntkdfl.storage.identity import require_record_of
from mpi_ntkdfl.storage.outputs import Outputs


@dataclass(frozen=True)
class LoadedRun:
    """A run with its data and weights.

    Attributes:
        config: of the run.
        network: its model.
        data: the data set.
        offsets: client i has the samples `indices[offsets[i] : offsets[i + 1]]`.
        indices: of the training samples.
        round: number of rounds done at the newest checkpoint.
        params: weights at the newest checkpoint, `[client, param]`.
        former: weights one round before, `[client, param]`; None where no checkpoint holds them.
        edges: the graph of the last round, `[edge, 2]`; empty without a graph.
    """

    config: Config
    network: Network
    data: Dataset
    offsets: np.ndarray
    indices: np.ndarray
    round: int
    params: torch.Tensor
    former: torch.Tensor | None
    edges: np.ndarray

    def samples(self, stored: np.ndarray, labels: np.ndarray) -> Samples:
        """Stored samples and labels as the network takes them."""
        inputs = self.data.scaling.apply(stored, self.config.compute.dtype)
        shaped = torch.from_numpy(np.asarray(inputs)).view(-1, *self.network.shape)
        return Samples(shaped, torch.from_numpy(np.asarray(labels)))

    def own(self, clients: Iterable[int]) -> Samples:
        """The training samples of some clients, one client after another."""
        own = [self.indices[self.offsets[c] : self.offsets[c + 1]] for c in clients]
        chosen = np.concatenate(own)
        return self.samples(self.data.train_inputs[chosen], self.data.train_labels[chosen])

    def start(self, clients: range) -> torch.Tensor:
        """Starting weights of `clients`, `[client, param]`.

        Raises:
            InputError: if the file of `model.weights` cannot be read.
        """
        given, path = None, self.config.model.weights
        if path is not None:
            read = read_weights(user_path(path, "model.weights"), self.network.layout)
            given = read.double().numpy()
        weights = starting_weights(self.config, self.network, clients, given)
        return weights.to(self.params.dtype)


def load(outputs: Outputs, data: Dataset | None = None) -> LoadedRun:
    """Reads a run and its data set.

    Args:
        outputs: the files of the run.
        data: its data set, if it is in memory already.

    Raises:
        InputError: if a file is missing or damaged, if they belong to different runs, if there is no
            such client, or if the data set is not the one that the run had.
    """
    with newest_checkpoint(outputs) as checkpoint:
        require_record_of(outputs, checkpoint)
        owner, done, params = checkpoint.run, checkpoint.round, _everyone(checkpoint)
        config = parse([read_yaml(checkpoint.config, f"the configuration in {checkpoint.path}")])
    former = None
    if outputs.former_checkpoint.exists():
        with contextlib.closing(Checkpoint(outputs.former_checkpoint)) as checkpoint:
            if checkpoint.round == done - 1 and checkpoint.run == owner:
                former = _everyone(checkpoint)
    data = data or sources.load(config.dataset)
    try:
        with reading(outputs.record) as file:
            recorded = str(file.attrs["data"])
            offsets, indices = (sane(file, f"partition/{n}")[:] for n in ("offsets", "indices"))
            edges = _last_edges(file, done)
    except FileNotFoundError as error:
        raise InputError(f"no record at {outputs.record}") from error
    except Exception as error:  # for a damaged file h5py can raise almost any exception
        raise InputError(f"{outputs.record} is not a readable record ({error})") from error
    if recorded != data.fingerprint():
        raise InputError(
            f"the data set {config.dataset.name} is not the one that {outputs.record} was computed with "
            "(its SHA-256 differs); point dataset.root at the former files"
        )
    network = build(config.model, data.shape, data.classes)
    return LoadedRun(config, network, data, offsets, indices, done, params, former, edges)


def _everyone(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.from_numpy(checkpoint.rows("params", range(checkpoint.clients)))


def _last_edges(file: h5py.File, done: int) -> np.ndarray:
    """Edges of the graph of round `done`, `[edge, 2]`; none before the first round."""
    offsets = sane(file, "topology/offsets")[:]
    first = int(offsets[done - 1]) if done else 0
    edges: np.ndarray = sane(file, "topology/edges")[first : int(offsets[done])]
    return edges
