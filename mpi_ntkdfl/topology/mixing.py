"""Weights with which a client averages its closed neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Floats, Graph
from mpi_ntkdfl.topology.present import Hearing


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


def weights(
    kind: Literal["plain", "samples"], graph: Graph | Hearing, sizes: npt.ArrayLike | None = None
) -> Weights:
    """Averaging weights over closed neighbourhoods N_i, client i itself included.

    Args:
        kind: "plain" for w_ij = 1 / |N_i|, "samples" for w_ij = n_j / sum of n_k over N_i.
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
    else:
        raise ValueError(f'weights must be "plain" or "samples", got {kind!r}')
    # reduceat is right here, because no closed neighbourhood is empty.
    totals = np.add.reduceat(parts, graph.offsets[:-1])
    if not totals.all():
        raise InputError(
            "averaging by samples needs a sample in every closed neighbourhood, got none around "
            f"client {int(np.argmin(totals))}; use plain averaging or another partition"
        )
    return Weights(graph, parts / np.repeat(totals, graph.degrees + 1))


def _checked_sizes(sizes: npt.ArrayLike | None, clients: int) -> Floats:
    given = np.asarray([] if sizes is None else sizes, dtype=np.float64)
    if given.shape != (clients,) or (given < 0).any():
        raise ValueError(f"sizes must be {clients} numbers >= 0, got shape {given.shape}: {given}")
    return given
