"""Local training: every client of a rank takes gradient steps on its own batches, many clients at once.

Steps are small, so clients go in groups through batched products. Two forms give the same steps:

- direct: the weights themselves; any rule of descent (`Rule`).
- dual: for SGD with momentum and weight decay. Each step adds a combination of the client's own inputs
  to the first layer, so its weights stay W = s W(0) + A^T X with A `[sample, out]`. Its outputs on a
  batch b are s X_b W(0)^T + (X X^T)_b A, and its step adds the backpropagated signals to the batch's
  rows of A. With the Gram matrix X X^T kept for the whole run, a step costs n products a sample and
  unit where the direct form has two times the number of features; W is formed at the end of the round.

A client's bits depend on its own samples, weights and settings alone: groups always have the same number
of places, empty ones are filled up, and paddings follow from the client's own number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from mpi_ntkdfl.algorithms.base import may_diverge, not_finite
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.model.batched import BatchedMLP, Factors, padded, product
from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.device import on_gpu

_PLACES = 4
"""Clients of a group: enough to share the cost of calls, few enough for the caches of a core."""
_PLACES_CUDA = 256
_GROUP_WORK = 16 * 10**6
"""Multiplications of a step that make the cost of calls small by themselves."""

Layers = list[torch.Tensor]
Gradient = Callable[[Layers], Factors]
Pack = Callable[[torch.Tensor], Layers]


class Rule(Protocol):
    """How one gradient step changes the layer matrices of a group's clients."""

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place.

        Args:
            layers: matrices `[client, out, in]`, padded with zeros, which must stay zeros.
            gradient: the batch's gradient at given matrices.
        """
        ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent: v <- momentum v + g + weight_decay w; w <- w - lr v; v = 0 at first.

    Attributes:
        lr: learning rate.
        momentum: 0 for none.
        weight_decay: of weights and biases.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


class SgdRule:
    """`Sgd` on matrices. See `Rule`."""

    def __init__(self, sgd: Sgd) -> None:
        """Starts without velocity."""
        self._sgd = sgd
        self._velocity: Layers = []

    def step(self, layers: Layers, gradient: Gradient) -> None:
        """One step, in place."""
        self.descend(layers, gradient(layers))

    def descend(self, layers: Layers, gradients: Factors) -> None:
        """One step along `gradients`."""
        sgd = self._sgd
        if not sgd.momentum:
            for layer, (signals, inputs) in zip(layers, gradients, strict=True):
                keep = 1 - sgd.lr * sgd.weight_decay
                layer.baddbmm_(signals.transpose(1, 2), inputs, beta=keep, alpha=-sgd.lr)
            return
        if self._velocity:
            for velocity, (signals, inputs) in zip(self._velocity, gradients, strict=True):
                velocity.baddbmm_(signals.transpose(1, 2), inputs, beta=sgd.momentum)
        else:
            self._velocity = [product(factors) for factors in gradients]
        for velocity, layer in zip(self._velocity, layers, strict=True):
            if sgd.weight_decay:
                velocity.add_(layer, alpha=sgd.weight_decay)
            layer.add_(velocity, alpha=-sgd.lr)


class _DualLayer:
    """A first layer s W(0) + A^T X under `Sgd`, by its coefficients s and A `[client * sample, out]`."""

    def __init__(self, sgd: Sgd, start: torch.Tensor, gram: torch.Tensor) -> None:
        """Starts at W(0).

        Args:
            sgd: the descent.
            start: outputs at W(0), `[client, sample, out]`.
            gram: X X^T, `[client, sample, sample]`.
        """
        self._sgd, (places, self._samples, self._width) = sgd, start.shape
        self._start, self._gram = start.flatten(0, 1), gram.flatten(0, 1)
        self._places = places
        self.scale, self._scale_velocity = 1.0, 0.0
        self._sums = torch.zeros_like(self._start)
        self._velocity = torch.zeros_like(self._start) if sgd.momentum else None

    @property
    def sums(self) -> torch.Tensor:
        """A, `[client, sample, out]`."""
        return self._sums.view(self._places, self._samples, self._width)

    @property
    def factor(self) -> float:
        """`scale` as the sums' type can hold it: what diverged is infinite, not an error of torch's."""
        fits = abs(self.scale) <= torch.finfo(self.sums.dtype).max
        return self.scale if fits else math.copysign(math.inf, self.scale)

    def outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Outputs `[client, batch, out]` for the batch of `rows` `[client * batch]`."""
        start = self._start.index_select(0, rows).view(self._places, -1, self._width)
        gram = self._gram.index_select(0, rows).view(self._places, -1, self._samples)
        return torch.baddbmm(start, gram, self.sums, beta=self.factor)

    def step(self, rows: torch.Tensor, signals: torch.Tensor) -> None:
        """Descends along X^T signals, `signals` `[client, batch, out]`."""
        sgd, flat = self._sgd, signals.flatten(0, 1)
        if self._velocity is None:
            if sgd.weight_decay:
                keep = 1 - sgd.lr * sgd.weight_decay
                self._sums.mul_(keep)
                self.scale *= keep
            self._sums.index_add_(0, rows, flat, alpha=-sgd.lr)
            return
        self._velocity.mul_(sgd.momentum).index_add_(0, rows, flat)
        self._scale_velocity *= sgd.momentum
        if sgd.weight_decay:
            self._velocity.add_(self._sums, alpha=sgd.weight_decay)
            self._scale_velocity += sgd.weight_decay * self.scale
        self._sums.add_(self._velocity, alpha=-sgd.lr)
        self.scale -= sgd.lr * self._scale_velocity


@dataclass(frozen=True)
class _Group:
    """Clients that take their steps together.

    Attributes:
        clients: their ids, at most `places`.
        places: clients the group has room for.
        batches: a local pass; the same for all of them.
        samples: rows each client's samples are padded to.
        dual: whether they go in the dual form where the rule allows it.
    """

    clients: tuple[int, ...]
    places: int
    batches: int
    samples: int
    dual: bool


def dual_pays(samples: int, features: int, epochs: int) -> bool:
    """Whether a round by SGD needs fewer products in the dual form; `samples` with their padding.

    Counted for a sample and a unit: outputs at W(0), the steps, and W at the end, against the steps.
    """
    return 2 * features + epochs * samples < 2 * epochs * features


def padded_samples(samples: int, batch: int) -> int:
    """Rows to which a client's samples are padded: whole batches, whole cache lines."""
    return padded(-(-samples // batch) * batch)


def gram_bytes(network: Network, dtype: torch.dtype, batch: int, epochs: int, samples: int) -> int:
    """Bytes of the Gram matrix that local training by SGD keeps for a client with `samples`."""
    rows = padded_samples(samples, batch)
    return rows * rows * dtype.itemsize * dual_pays(rows, network.widths[0], epochs)


class LocalTraining:
    """Local steps of all clients of a rank.

    A local pass goes through a client's samples in a random order of its own, in batches; the last may
    be smaller. Orders depend on seed, client and round.
    """

    def __init__(self, federation: Federation, batch: int, epochs: int) -> None:
        """Plans the groups.

        Args:
            federation: the clients.
            batch: samples a step.
            epochs: local passes a round.
        """
        self._federation, self._batch, self._epochs = federation, batch, epochs
        self._mlp = BatchedMLP(federation.network)
        self._grams: dict[_Group, torch.Tensor] = {}

    def descend(self, weights: torch.Tensor, number: int, sgd: Sgd) -> torch.Tensor:
        """A round's local steps by SGD; velocities start at zero.

        Args:
            weights: of this rank's clients, `[owned, param]`.
            number: the round, from 0.
            sgd: the descent.

        Returns:
            The trained weights, `[owned, param]`.

        Raises:
            Diverged: naming client and round, if weights become non-finite.
        """

        def train(group: _Group, start: torch.Tensor) -> torch.Tensor:
            if group.dual:
                return self._dual(group, start, number, sgd)
            return self._direct(group, start, number, SgdRule(sgd))

        return self._by_group(weights, number, train, dual=True)

    def follow(
        self, weights: torch.Tensor, number: int, rule: Callable[[Pack], Rule]
    ) -> torch.Tensor:
        """A round's local steps by any rule, in the direct form; otherwise like `descend`.

        Args:
            weights: of this rank's clients, `[owned, param]`.
            number: the round, from 0.
            rule: makes a group's rule; it is given a function that turns an array `[owned, param]`
                into layer matrices `[client, out, in]` of the group's clients.
        """

        def train(group: _Group, start: torch.Tensor) -> torch.Tensor:
            def pack(rows: torch.Tensor) -> Layers:
                return self._mlp.pack(self._of_group(group, rows))

            return self._direct(group, start, number, rule(pack))

        return self._by_group(weights, number, train, dual=False)

    # ---------------------------------------------------------------------------------- the two forms

    def _dual(self, group: _Group, start: torch.Tensor, number: int, sgd: Sgd) -> torch.Tensor:
        inputs, targets = self._data(group)
        if group not in self._grams:
            self._grams[group] = torch.bmm(inputs, inputs.transpose(1, 2))
        initial, *upper = self._mlp.pack(start)
        outputs = torch.bmm(inputs, initial.transpose(1, 2))
        first, rule = _DualLayer(sgd, outputs, self._grams[group]), SgdRule(sgd)
        for rows, shares in self._steps(group, number):
            labels = targets.index_select(0, rows).view(group.places, self._batch, -1)
            signals, gradients = self._mlp.backpropagate(first.outputs(rows), upper, labels, shares)
            first.step(rows, signals)
            rule.descend(upper, gradients)
        weight = torch.baddbmm(initial, first.sums.transpose(1, 2), inputs, beta=first.factor)
        return self._mlp.unpack([weight, *upper])

    def _direct(self, group: _Group, start: torch.Tensor, number: int, rule: Rule) -> torch.Tensor:
        inputs, targets = self._data(group)
        layers, inputs = self._mlp.pack(start), inputs.flatten(0, 1)
        for rows, shares in self._steps(group, number):
            x = inputs.index_select(0, rows).view(group.places, self._batch, -1)
            y = targets.index_select(0, rows).view(group.places, self._batch, -1)
            rule.step(layers, partial(self._mlp.gradients, inputs=x, targets=y, shares=shares))
        return self._mlp.unpack(layers)

    # -------------------------------------------------------------------------------- groups and data

    def _by_group(
        self,
        weights: torch.Tensor,
        number: int,
        train: Callable[[_Group, torch.Tensor], torch.Tensor],
        dual: bool,
    ) -> torch.Tensor:
        """Trains group after group; clients without samples keep their weights."""
        f, trained = self._federation, weights.clone()
        with f.clock("train"):
            for group in self._groups(dual):
                rows = self._own_rows(group)
                trained[rows] = train(group, self._of_group(group, weights))[: len(rows)]
        finite = torch.isfinite(trained).all(dim=1).tolist()
        for client, before, row, fine in zip(f.owned, weights, trained, finite, strict=True):
            with may_diverge(f, number, client):
                if not fine:
                    row.copy_(before)
                    raise not_finite("lower algorithm.lr or algorithm.momentum")
        return trained

    def _own_rows(self, group: _Group) -> torch.Tensor:
        """Where the group's clients stand among the rank's."""
        first = self._federation.owned.start
        return torch.tensor(group.clients, device=self._federation.device) - first

    def _of_group(self, group: _Group, rows: torch.Tensor) -> torch.Tensor:
        """The group's places of `rows` `[owned, param]`, zeros where one is empty."""
        chosen = rows.new_zeros(group.places, rows.shape[1])
        chosen[: len(group.clients)] = rows[self._own_rows(group)]
        return chosen

    def _groups(self, dual: bool) -> Iterator[_Group]:
        """The rank's clients in groups of equally many batches a pass."""
        f, sizes = self._federation, self._federation.sizes
        features, width = f.network.widths[:2]
        batches = -(-sizes[f.owned.start : f.owned.stop] // self._batch)
        for count in np.unique(batches[batches > 0]).tolist():
            clients = (np.flatnonzero(batches == count) + f.owned.start).tolist()
            samples = padded_samples(count * self._batch, self._batch)
            in_dual = dual and dual_pays(samples, features, self._epochs)
            work = self._batch * width * (samples if in_dual else 2 * features)
            places = min(max(_GROUP_WORK // work, 1), _PLACES)
            if on_gpu(f.device):
                places = min(_PLACES_CUDA, len(clients))
            for start in range(0, len(clients), places):
                chosen = tuple(clients[start : start + places])
                yield _Group(chosen, places, count, samples, in_dual)

    def _data(self, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs with ones behind them `[client, sample, in]`, targets `[client * sample, output]`."""
        f, widths = self._federation, self._federation.network.widths
        inputs = torch.zeros(
            group.places,
            group.samples,
            self._mlp.padded_widths[0],
            dtype=f.dtype,
            device=f.device,
        )
        targets = inputs.new_zeros(group.places, group.samples, widths[-1])
        for place, client in enumerate(group.clients):
            own = f.samples[client]
            inputs[place, : len(own.labels), : widths[0]] = own.inputs
            inputs[place, : len(own.labels), widths[0]] = 1
            targets[place, : len(own.labels)] = one_hot(own.labels, widths[-1], f.dtype)
        return inputs, targets.flatten(0, 1)

    def _steps(self, group: _Group, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of a round, as rows of the group's samples, with what each sample's loss counts.

        Rows are `[client * batch]`, shares `[client, batch, 1]`. Batches that are not full are
        filled up with samples of share 0.
        """
        f, room = self._federation, group.batches * self._batch
        order = np.zeros((self._epochs, group.batches, group.places, self._batch), dtype=np.int64)
        order += np.arange(group.places)[:, None] * group.samples
        shares = np.zeros((group.batches, group.places, self._batch, 1))
        for place, client in enumerate(group.clients):
            n = int(f.sizes[client])
            passes = np.full((self._epochs, room), n)
            passes[:, :n] = seeds.generator(f.seed, "batches", client, number).permuted(
                np.tile(np.arange(n), (self._epochs, 1)), axis=1
            )
            order[:, :, place] += passes.reshape(self._epochs, group.batches, self._batch)
            shares[:, place] = 1 / self._batch
            last = n - (group.batches - 1) * self._batch
            shares[-1, place] = 0
            shares[-1, place, :last] = 1 / last
        rows = torch.from_numpy(order.reshape(self._epochs * group.batches, -1)).to(f.device)
        weight = torch.from_numpy(shares).to(device=f.device, dtype=f.dtype)
        for step, batch in enumerate(rows):
            yield batch, weight[step % group.batches]
