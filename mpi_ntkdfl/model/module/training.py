"""Local training of any module.

On a CPU the clients are trained one after another, so that the bits of a client do not depend on other
clients. On a GPU groups of clients take their steps together (`torch.func.vmap`), if torch can vectorise
the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mpi_ntkdfl.model.losses import loss_gradient, sample_losses, shifted
from mpi_ntkdfl.model.module.function import FlatModule, vectorised
from mpi_ntkdfl.model.params import outside
from mpi_ntkdfl.model.training import Data, Layers, Orders, Pack, Rule, Sgd, SgdRule


@dataclass(frozen=True)
class Gradients:
    """Gradients `[client, P]` with respect to all parameters. See `Slope`."""

    entries: torch.Tensor

    def add_to(self, array: torch.Tensor, keep: float, times: float) -> None:
        """`array = keep * array + times * gradient`, in place."""
        array.mul_(keep).add_(self.entries, alpha=times)

    def dense(self) -> torch.Tensor:
        """The gradients themselves."""
        return self.entries


@dataclass(frozen=True)
class _Batch:
    """The samples of one step of a group.

    Attributes:
        inputs: `[client, sample, *shape]`.
        labels: `[client, sample]`.
        shares: weight of each sample's loss, `[client, sample]`; 0 for samples that only fill a batch.
        shifts: what is added to the outputs in the loss, `[client, output]`; None for nothing.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    shares: torch.Tensor
    shifts: torch.Tensor | None


class ModuleTrainer:
    """Local steps of several clients. See `Trainer`."""

    def __init__(
        self,
        function: FlatModule,
        data: Sequence[Data],
        batch: int,
        epochs: int,
        places: int,
        shifts: Sequence[torch.Tensor] = (),
    ) -> None:
        """Plans the groups.

        Args:
            function: the module.
            data: inputs `[sample, *shape]` and labels `[sample]` of each client.
            batch: number of samples per step.
            epochs: number of local passes per round.
            places: the most clients that take their steps together.
            shifts: what is added to each client's outputs in its loss, `[output]`; empty for nothing.
        """
        self._shifts = shifts
        self._function, self._data = function, data
        self._batch, self._epochs, self._places = batch, epochs, places
        self._sizes = np.array([len(labels) for _, labels in data])

    def descend(self, weights: torch.Tensor, orders: Orders, sgd: Sgd) -> torch.Tensor:
        """Takes the steps of a round by SGD; velocities start at zero."""
        return self.follow(weights, orders, lambda _: SgdRule(sgd))

    def follow(
        self, weights: torch.Tensor, orders: Orders, rule: Callable[[Pack], Rule]
    ) -> torch.Tensor:
        """Takes the steps of a round by any rule on one array `[client, P]` of all parameters."""
        trained = weights.clone()
        for group in self._groups():
            rows = torch.tensor(group, device=weights.device)

            def pack(every: torch.Tensor, rows: torch.Tensor = rows) -> Layers:
                return [every[rows]]

            layers, steps = pack(weights), rule(pack)
            for batch in self._batches(group, orders):
                steps.step(layers, partial(self._gradients, batch))
            trained[rows] = layers[0]
        return trained

    def _groups(self) -> Iterator[list[int]]:
        """Groups of at most `places` clients with the same number of batches per pass."""
        counts = -(-self._sizes // self._batch)
        for count in np.unique(counts[counts > 0]).tolist():
            clients = np.flatnonzero(counts == count).tolist()
            for start in range(0, len(clients), self._places):
                yield clients[start : start + self._places]

    def _batches(self, group: list[int], orders: Orders) -> Iterator[_Batch]:
        """The batches of a round; shorter batches are filled with samples of weight 0."""
        passes = [orders(client) for client in group]
        longest = max(order.shape[1] for order in passes)
        for epoch in range(self._epochs):
            for start in range(0, longest, self._batch):
                yield self._chosen(
                    group, [order[epoch, start : start + self._batch] for order in passes]
                )

    def _chosen(self, group: list[int], picks: list[np.ndarray]) -> _Batch:
        width = max(map(len, picks))
        inputs, labels = [], []
        shares = torch.zeros(len(group), width, dtype=torch.float64)
        for place, (client, pick) in enumerate(zip(group, picks, strict=True)):
            x, y = self._data[client]
            # Batches are filled with real samples: for samples of zeros a module may divide by zero.
            filled = np.pad(pick, (0, width - len(pick)), constant_values=pick[0])
            index = torch.from_numpy(filled).to(x.device)
            inputs.append(x[index])
            labels.append(y[index])
            shares[place, : len(pick)] = 1 / len(pick)
        stacked = torch.stack(inputs)
        shifts = torch.stack([self._shifts[client] for client in group]) if self._shifts else None
        return _Batch(stacked, torch.stack(labels), shares.to(stacked.device), shifts)

    def _gradients(self, batch: _Batch, layers: Layers) -> list[Gradients]:
        (params,) = layers
        shares = batch.shares.to(params.dtype)
        if len(params) == 1:
            gradient = loss_gradient(
                shifted(self._function, None if batch.shifts is None else batch.shifts[0]),
                params[0],
                batch.inputs[0],
                batch.labels[0],
                "cross-entropy",
                shares[0],
            )
            return [Gradients(gradient[None])]

        def value(
            point: torch.Tensor,
            x: torch.Tensor,
            y: torch.Tensor,
            counts: torch.Tensor,
            shift: torch.Tensor | None = None,
        ) -> torch.Tensor:
            losses = sample_losses(shifted(self._function, shift)(point, x), y, "cross-entropy")
            return (losses * counts).sum()

        given = [params, batch.inputs, batch.labels, shares]
        if batch.shifts is not None:
            given.append(batch.shifts)
        with torch.inference_mode(False), torch.enable_grad():
            arguments = [outside(x) for x in given]
            return [Gradients(vectorised(torch.func.grad(value), *arguments))]
