"""Local training of multilayer perceptrons: many clients at once, with batched products.

The steps of one client are small, so batched products take the steps of a group of clients. Two forms
give the same steps:

- direct: works on the weights themselves, with any rule of descent (`Rule`).
- dual: works for SGD with momentum and weight decay. Each step adds a combination of the client's own
  inputs to the first layer, so its weights always have the form W = s W(0) + A^T X with
  A `[sample, out]`. Its outputs on a batch b are s X_b W(0)^T + (X X^T)_b A, and its step adds the
  backpropagated signals to the rows of A that belong to the batch. The Gram matrix X X^T is kept for the
  whole run. So a step costs n products per sample and unit, while the direct form costs two times the
  number of features. W is computed at the end of the round.

The bits of a client depend only on its own samples, weights and settings. For this, all groups have the
same number of places and empty places are filled, and the padding of a client depends only on its own
number of samples.

`compiled_training.py` takes the steps of SGD in C, for one client after another on CPUs in float32. That
saves the time of the calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mpi_ntkdfl.model.losses import one_hot
from mpi_ntkdfl.model.mlp.batched import BatchedStack, padded
from mpi_ntkdfl.model.mlp.compiled_training import Steps, find
from mpi_ntkdfl.model.mlp.stack import Stack
from mpi_ntkdfl.model.training import Data, Layers, Orders, Pack, Rule, Sgd, SgdRule
from mpi_ntkdfl.runtime.device import on_gpu

_PLACES = 4
"""Most clients of a group: enough to share the cost of calls, few enough for the caches of a core."""
_PLACES_CUDA = 256
_GROUP_WORK = 16 * 10**6
"""Multiplications per step of a group. With so many, the cost of the calls is small in comparison."""


def representable(number: float, dtype: torch.dtype) -> float:
    """`number` within the range of a type; infinite beyond it."""
    fits = abs(number) <= torch.finfo(dtype).max
    return number if fits else math.copysign(math.inf, number)


class _DualLayer:
    """A first layer s W(0) + A^T X under `Sgd`, as its coefficients s and A `[client * sample, out]`."""

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
        """`scale` within the range of the sums' type. A scale that diverged is infinite.

        Without this torch would raise an error of its own for a scale that is too large.
        """
        return representable(self.scale, self.sums.dtype)

    def outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Outputs `[client, batch, out]` for the batch of `rows` `[client * batch]`."""
        start = self._start.index_select(0, rows).view(self._places, -1, self._width)
        gram = self._gram.index_select(0, rows).view(self._places, -1, self._samples)
        return torch.baddbmm(start, gram, self.sums, beta=self.factor)

    def step(self, rows: torch.Tensor, signals: torch.Tensor) -> None:
        """Takes a step along X^T signals, where `signals` is `[client, batch, out]`."""
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
        clients: their indices among all clients; at most `places`.
        places: number of clients for which the group has room.
        batches: number of batches per local pass; the same for all clients of the group.
        samples: number of rows to which each client's samples are padded.
        dual: whether to use the dual form.
    """

    clients: tuple[int, ...]
    places: int
    batches: int
    samples: int
    dual: bool


def dual_pays(samples: int, features: int, epochs: int) -> bool:
    """Whether a round of SGD needs fewer products in the dual form.

    Products are counted per sample and unit. The dual form needs those for the outputs at W(0), for the
    steps, and for W at the end. The direct form needs only those for the steps.

    Args:
        samples: number of samples of a client, with padding.
        features: number of features.
        epochs: number of passes per round.
    """
    return 2 * features + epochs * samples < 2 * epochs * features


def padded_samples(samples: int, batch: int) -> int:
    """Number of rows to which a client's samples are padded: whole batches and whole cache lines."""
    return padded(-(-samples // batch) * batch)


def gram_numbers(features: int, samples: int, batch: int, epochs: int) -> int:
    """Size of the Gram matrix that training by SGD keeps for a client with `samples` samples."""
    rows = padded_samples(samples, batch)
    return rows * rows * dual_pays(rows, features, epochs)


class StackTrainer:
    """Local steps of several clients. See `Trainer`."""

    def __init__(
        self,
        network: Stack,
        data: Sequence[Data],
        batch: int,
        epochs: int,
        shifts: Sequence[torch.Tensor] = (),
        compiled: bool = False,
    ) -> None:
        """Plans the groups.

        Args:
            network: the network.
            data: inputs `[sample, feature]` and labels `[sample]` of each client.
            batch: number of samples per step.
            epochs: number of local passes per round.
            shifts: what is added to each client's outputs in its loss, `[output]`; empty for nothing.
            compiled: whether `descend` takes its steps in C; see `compiled_training`.

        Raises:
            ValueError: if there is no compiled version.
        """
        build = find() if compiled else None
        if isinstance(build, str):
            raise ValueError(f"there is no compiled version of local training: {build}")
        self._build = build
        self._shifts = torch.stack(list(shifts)) if shifts else None
        self._data, self._batch, self._epochs = data, batch, epochs
        self._sizes = np.array([len(labels) for _, labels in data])
        self._network = BatchedStack(network)
        self._grams: dict[_Group, torch.Tensor] = {}

    def descend(self, weights: torch.Tensor, orders: Orders, sgd: Sgd) -> torch.Tensor:
        """Takes the steps of a round by SGD, in the dual form if it is cheaper; velocities start at 0."""
        if self._build is not None:
            trained = weights.clone()
            for group in self._groups(dual=True, places=1):
                (client,) = group.clients
                trained[client] = self._compiled(group, weights[client], orders(client), sgd)
            return trained

        def train(group: _Group, start: torch.Tensor) -> torch.Tensor:
            if group.dual:
                return self._dual(group, start, orders, sgd)
            return self._direct(group, start, orders, SgdRule(sgd))

        return self._by_group(weights, train, dual=True)

    def follow(
        self, weights: torch.Tensor, orders: Orders, rule: Callable[[Pack], Rule]
    ) -> torch.Tensor:
        """Takes the steps of a round by any rule in the direct form, on matrices `[client, out, in]`."""

        def train(group: _Group, start: torch.Tensor) -> torch.Tensor:
            def pack(rows: torch.Tensor) -> Layers:
                return self._network.pack(_of_group(group, rows))

            return self._direct(group, start, orders, rule(pack))

        return self._by_group(weights, train, dual=False)

    # ---------------------------------------------------------------------------------- the two forms

    def _compiled(
        self, group: _Group, start: torch.Tensor, order: np.ndarray, sgd: Sgd
    ) -> torch.Tensor:
        """The weights `[param]` of a group's only client after its steps in C, from `start` `[param]`."""
        assert self._build is not None
        (client,), inputs = group.clients, self._inputs(group)
        shift = None if self._shifts is None else self._shifts[client]
        labels, widths = self._data[client][1], self._network.network.widths
        steps = Steps(widths, order, self._batch, labels, shift, sgd)
        initial, *upper = (layer[0] for layer in self._network.pack(start[None]))
        if group.dual:
            outputs = torch.mm(inputs[0], initial.T)
            sums, gram = torch.zeros_like(outputs), self._gram(group, inputs)
            scale = self._build.train(steps, gram[0], sums, upper, outputs)
            beta = representable(scale, sums.dtype)
            first = torch.addmm(initial, sums.T, inputs[0], beta=beta)
        else:
            turned = initial.T.contiguous()
            self._build.train(steps, inputs[0], turned, upper)
            first = turned.T
        return self._network.unpack([layer[None] for layer in (first, *upper)])[0]

    def _gram(self, group: _Group, inputs: torch.Tensor) -> torch.Tensor:
        """X X^T of the group's padded `inputs`, `[client, sample, sample]`; kept for the whole run."""
        if group not in self._grams:
            self._grams[group] = torch.bmm(inputs, inputs.transpose(1, 2))
        return self._grams[group]

    def _dual(self, group: _Group, start: torch.Tensor, orders: Orders, sgd: Sgd) -> torch.Tensor:
        inputs, targets = self._inputs(group), self._targets(group)
        initial, *upper = self._network.pack(start)
        outputs = torch.bmm(inputs, initial.transpose(1, 2))
        first, rule = _DualLayer(sgd, outputs, self._gram(group, inputs)), SgdRule(sgd)
        shift = self._shift(group)
        for rows, shares in self._steps(group, orders):
            labels = targets.index_select(0, rows).view(group.places, self._batch, -1)
            signals, gradients = self._network.backpropagate(
                first.outputs(rows), upper, labels, shares, shift
            )
            first.step(rows, signals)
            rule.descend(upper, gradients)
        weight = torch.baddbmm(initial, first.sums.transpose(1, 2), inputs, beta=first.factor)
        return self._network.unpack([weight, *upper])

    def _direct(
        self, group: _Group, start: torch.Tensor, orders: Orders, rule: Rule
    ) -> torch.Tensor:
        inputs, targets = self._inputs(group).flatten(0, 1), self._targets(group)
        layers = self._network.pack(start)
        gradients = partial(self._network.gradients, shift=self._shift(group))
        for rows, shares in self._steps(group, orders):
            x = inputs.index_select(0, rows).view(group.places, self._batch, -1)
            y = targets.index_select(0, rows).view(group.places, self._batch, -1)
            rule.step(layers, partial(gradients, inputs=x, targets=y, shares=shares))
        return self._network.unpack(layers)

    # -------------------------------------------------------------------------------- groups and data

    def _by_group(
        self,
        weights: torch.Tensor,
        train: Callable[[_Group, torch.Tensor], torch.Tensor],
        dual: bool,
    ) -> torch.Tensor:
        """Trains one group after another; clients without samples keep their weights."""
        trained = weights.clone()
        for group in self._groups(dual):
            rows = _rows(group, weights.device)
            trained[rows] = train(group, _of_group(group, weights))[: len(rows)]
        return trained

    def _groups(self, dual: bool, places: int | None = None) -> Iterator[_Group]:
        """Groups of clients with the same number of batches per pass.

        Args:
            dual: whether they may use the dual form.
            places: how many clients have room in a group; None for what suits tensors.
        """
        features, width = self._network.network.widths[:2]
        batches = -(-self._sizes // self._batch)
        for count in np.unique(batches[batches > 0]).tolist():
            clients = np.flatnonzero(batches == count).tolist()
            samples = padded_samples(count * self._batch, self._batch)
            in_dual = dual and dual_pays(samples, features, self._epochs)
            work = self._batch * width * (samples if in_dual else 2 * features)
            room = places or min(max(_GROUP_WORK // work, 1), _PLACES)
            if on_gpu(self._data[0][0].device):
                room = min(_PLACES_CUDA, len(clients))
            for start in range(0, len(clients), room):
                chosen = tuple(clients[start : start + room])
                yield _Group(chosen, room, count, samples, in_dual)

    def _inputs(self, group: _Group) -> torch.Tensor:
        """Padded inputs `[client, sample, in]` with a column of ones."""
        width, like = self._network.network.widths[0], self._data[0][0]
        inputs = like.new_zeros(group.places, group.samples, self._network.padded_widths[0])
        for place, client in enumerate(group.clients):
            own, _ = self._data[client]
            inputs[place, : len(own), :width] = own
            inputs[place, : len(own), width] = 1
        return inputs

    def _targets(self, group: _Group) -> torch.Tensor:
        """Padded targets `[client * sample, output]`."""
        classes, like = self._network.network.widths[-1], self._data[0][0]
        targets = like.new_zeros(group.places, group.samples, classes)
        for place, client in enumerate(group.clients):
            _, labels = self._data[client]
            targets[place, : len(labels)] = one_hot(labels, classes, like.dtype)
        return targets.flatten(0, 1)

    def _shift(self, group: _Group) -> torch.Tensor | None:
        """What is added to the outputs of the group's clients, `[client, 1, output]`."""
        return None if self._shifts is None else _of_group(group, self._shifts)[:, None]

    def _steps(self, group: _Group, orders: Orders) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of a round as indices of the group's samples, with the weights of their losses.

        Indices are `[client * batch]`, weights `[client, batch, 1]`. Batches that are not full are
        filled with samples of weight 0.
        """
        like, room = self._data[0][0], group.batches * self._batch
        order = np.zeros((self._epochs, group.batches, group.places, self._batch), dtype=np.int64)
        order += np.arange(group.places)[:, None] * group.samples
        shares = np.zeros((group.batches, group.places, self._batch, 1))
        for place, client in enumerate(group.clients):
            n = int(self._sizes[client])
            passes = np.full((self._epochs, room), n)
            passes[:, :n] = orders(client)
            order[:, :, place] += passes.reshape(self._epochs, group.batches, self._batch)
            shares[:, place] = 1 / self._batch
            last = n - (group.batches - 1) * self._batch
            shares[-1, place] = 0
            shares[-1, place, :last] = 1 / last
        rows = torch.from_numpy(order.reshape(self._epochs * group.batches, -1)).to(like.device)
        weight = torch.from_numpy(shares).to(like)
        for step, batch in enumerate(rows):
            yield batch, weight[step % group.batches]


def _rows(group: _Group, device: torch.device) -> torch.Tensor:
    """The indices of the group's clients among all clients."""
    return torch.tensor(group.clients, device=device)


def _of_group(group: _Group, rows: torch.Tensor) -> torch.Tensor:
    """The rows `[place, ...]` of the group's clients in `rows` `[client, ...]`; empty places are zero."""
    chosen = rows.new_zeros(group.places, rows.shape[1])
    chosen[: len(group.clients)] = rows[_rows(group, rows.device)]
    return chosen
