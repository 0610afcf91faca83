"""A round without some of the clients: they keep their weights and the arrays that the method carries."""

from __future__ import annotations

from typing import Any

import torch

from mpi_ntkdfl.algorithms.base import Method, RoundResult
from mpi_ntkdfl.federation.exchange import Exchange


def attended_round(
    method: Method[Any], weights: torch.Tensor, number: int, exchange: Exchange
) -> RoundResult:
    """One round of a method, for the clients that take part.

    A method may compute something for absent clients of its rank, but the results are not kept. On the
    round's graph absent clients have no neighbours.

    Args:
        method: the method of the run.
        weights: the weights of this rank's clients, `[owned, param]`.
        number: number of the round, from 0.
        exchange: the messages on the graph of the clients that take part.
    """
    federation = method.federation
    method.codings.begin(number)
    absent = torch.from_numpy(federation.presence.absent_of(federation.owned)).to(weights.device)
    if not len(absent):
        return method.round(weights, number, exchange)
    former = {name: array[absent].clone() for name, array in method.whole_state().items()}
    result = method.round(weights, number, exchange)
    new, taus = result.weights.clone(), list(result.taus)
    new[absent] = weights[absent]
    for row in absent.tolist():
        taus[row] = 0
    if former:
        state = {name: array.clone() for name, array in method.whole_state().items()}
        for name, array in former.items():
            state[name][absent] = array
        method.restore_whole(state)
    return RoundResult(new, taus)
