"""Weights with which a client averages its closed neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Floats, Graph
from mpi_ntkdfl.topology.present import Hearing

Averaging = Literal["plain", "samples", "metropolis"]
"""How a client weighs its closed neighbourhood; see `weights`."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Averaging weights of all clients.

    Attributes:
        graph: the neighbourhoods to which they belong.
        values: [M+2E] float64, aligned with `graph.members`.
    """

    graph: Graph | Hearing
    values: Floats

    def of(self, client: int) -> Floats:
        """Weights [degree+1] of the clients in `graph.closed(client)`, in this order; they sum to 1."""
        return self.values[self.graph.offsets[client] : self.graph.offsets[client + 1]]


def weights(kind: Averaging, graph: Graph | Hearing, sizes: npt.ArrayLike | None = None) -> Weights:
    """Averaging weights over closed neighbourhoods N_i, client i itself included.

    Args:
        kind: "plain" for w_ij = 1 / |N_i|, "samples" for w_ij = n_j / sum of n_k over N_i, "metropolis"
            for w_ij = 1 / (1 + max(d_i, d_j)) with degrees d and the rest for i itself. The last are
            symmetric, so that averaging keeps the mean of all clients on any graph (Xiao and Boyd, "Fast
            linear iterations for distributed averaging", Systems & Control Letters 2004).
        graph: the round's graph, or whom each client hears on it.
        sizes: [M] number of samples n_j of each client, >= 0; only needed for "samples".

    Raises:
        InputError: if a client and all its neighbours have no samples.
        ValueError: for another kind, or if there is not one size per client.
    """
    if kind == "plain":
        parts = np.ones(len(graph.members))
    elif kind == "samples":
        parts = _checked_sizes(sizes, graph.clients)[graph.members]
    elif kind == "metropolis":
        return Weights(graph, _metropolis(graph))
    else:
        raise ValueError(f'weights must be "plain", "samples" or "metropolis", got {kind!r}')
    # reduceat is right here, because no closed neighbourhood is empty.
    totals = np.add.reduceat(parts, graph.offsets[:-1])
    if not totals.all():
        raise InputError(
            "averaging by samples needs a sample in every closed neighbourhood, got none around "
            f"client {int(np.argmin(totals))}; use plain averaging or another partition"
        )
    return Weights(graph, parts / np.repeat(totals, graph.degrees + 1))


def _metropolis(graph: Graph | Hearing) -> Floats:
    """The values of Metropolis weights, aligned with `graph.members`."""
    owners = np.repeat(np.arange(graph.clients), graph.degrees + 1)
    own = owners == graph.members
    values = 1.0 / (1 + np.maximum(graph.degrees[owners], graph.degrees[graph.members]))
    values[own] = 0.0
    values[own] = 1.0 - np.add.reduceat(values, graph.offsets[:-1])
    return values


def _checked_sizes(sizes: npt.ArrayLike | None, clients: int) -> Floats:
    given = np.asarray([] if sizes is None else sizes, dtype=np.float64)
    if given.shape != (clients,) or (given < 0).any():
        raise ValueError(f"sizes must be {clients} numbers >= 0, got shape {given.shape}: {given}")
    return given
