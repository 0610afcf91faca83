"""Which parameters of a module the fast form of the kernel can serve, found in a trial pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mpi_ntkdfl.model.module.backward import Backward
from mpi_ntkdfl.model.module.folded import Gradients, Known
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.graph import Consumer, Graph, Shape, Step
from mpi_ntkdfl.model.module.uses import Order, Use, use_of
from mpi_ntkdfl.runtime import seeds

_SAME = 1e-3
"""Largest relative error of gradients that are equal but for rounding, or very different."""


class Pass:
    """A forward pass of a batch, with the graph of autograd."""

    def __init__(self, function: FlatModule, params: torch.Tensor, inputs: torch.Tensor) -> None:
        """Passes `inputs` `[sample, *shape]` through the module at `params` `[P]`."""
        tensors = function.layout.unflatten(params)
        self.leaves = {name: each.detach().requires_grad_() for name, each in tensors.items()}
        with torch.enable_grad():
            self.outputs = function.with_tensors(self.leaves, params, inputs)
        self.graph = Graph(self.outputs)
        self.samples = len(inputs)

    def consumers(self, names: Iterable[str]) -> dict[str, list[Consumer]]:
        """The nodes that read each of the parameters `names`."""
        return self.graph.consumers({name: self.leaves[name] for name in names})

    def uses(
        self, name: str, consumers: Sequence[Consumer], orders: Mapping[int, Order]
    ) -> list[Use]:
        """The uses of a parameter; none unless all of them are recognised and agree in their entries."""
        uses = []
        for each in consumers:
            order = orders.get(each.place)
            shape = tuple(self.leaves[name].shape)
            use = order and use_of(self.graph, each, order, self.samples, shape)
            if not use:
                return []
            uses.append(use)
        agree = {
            (each.views, use.gradient, use.shape) for each, use in zip(consumers, uses, strict=True)
        }
        return uses if len(agree) == 1 else []

    def uses_of(self, names: Iterable[str], orders: Mapping[int, Order]) -> dict[str, list[Use]]:
        """The uses of each of the parameters `names`."""
        consumers = self.consumers(names)
        return {name: self.uses(name, each, orders) for name, each in consumers.items()}

    def gradients(
        self, places: Sequence[int], directions: torch.Tensor, folded: bool
    ) -> Iterator[tuple[int, Gradients, Known]]:
        """See `Backward.gradients`; one of `directions` after another if not `folded`."""
        if folded:
            yield from Backward(self.graph, self.samples, places).gradients(
                self.outputs, directions
            )
            return
        by_output = [self.signals(places, direction) for direction in directions]
        for place, signals in zip(places, zip(*by_output, strict=True), strict=True):
            yield place, list(signals), {}

    def signals(self, places: Sequence[int], weights: torch.Tensor) -> list[torch.Tensor]:
        """Gradients at the nodes `places` of the outputs times `weights`.

        Args:
            places: numbers of nodes.
            weights: `[output]` or `[sample, output]`.
        """
        if not places:
            return []
        edges = [self.graph.edge(place) for place in places]
        found = torch.autograd.grad(
            self.outputs,
            edges,
            weights.expand_as(self.outputs),
            retain_graph=True,
            allow_unused=True,
        )
        return [
            self.outputs.new_zeros(self.graph.shape(place)) if signal is None else signal
            for place, signal in zip(places, found, strict=True)
        ]

    def ordered(self, orders: Mapping[int, Order]) -> bool:
        """Whether the outputs of nodes belong to samples by `orders` in this pass as well.

        A module may move entries from sample to sample by their values and back, for example to sort
        samples by their expert. If each sample's outputs get a weight of their own, all its gradients
        must get this weight. Where no operation can move entries in this way, no pass is needed.
        """
        if self.graph.staying(orders, self.samples):
            return True
        generator = seeds.generator(0, "weights of samples")
        weights = torch.from_numpy(generator.uniform(1, 2, self.samples)).to(self.outputs)
        places, even = list(orders), _uneven(self.outputs)
        pairs = zip(
            self.signals(places, even), self.signals(places, weights[:, None] * even), strict=True
        )
        for order, pair in zip(orders.values(), pairs, strict=True):
            one, other = (order.by_sample(signal, self.samples).flatten(1) for signal in pair)
            if not bool((other - weights[:, None] * one).abs().max() <= _SAME * one.abs().max()):
                return False
        return True


@dataclass(frozen=True)
class Plan:
    """What the trial saw of a module's graph. It serves where a pass has the same graph.

    Attributes:
        steps: the graph of the trial.
        samples: number of samples of the trial.
        orders: how the outputs of nodes are ordered by samples, by the number of the node.
        linear: weights of linear maps at one place per sample, and whether their biases go with them.
        biases: the biases that go with them.
        multiplied: other parameters whose uses are all recognised, and their numbers of entries.
        rest: parameters that are used in other ways, which are left to the generic form.
        signals: how many numbers one sample needs for the signals and gradients of one output.
        activations: how many numbers one sample needs for a forward pass and patches of images.
        classes: C.
        linear_entries: number of entries of the weights `linear`.
        rest_entries: number of entries of the parameters `rest`.
        folded: whether gradients of several outputs pass together (`backward`).
    """

    steps: tuple[Step, ...]
    samples: int
    orders: Mapping[int, Order]
    linear: Mapping[str, bool]
    biases: tuple[str, ...]
    multiplied: Mapping[str, int]
    rest: tuple[str, ...]
    signals: int
    activations: int
    classes: int
    linear_entries: int
    rest_entries: int
    folded: bool

    @property
    def pays(self) -> bool:
        """Whether this form saves time: it serves all parameters, or the rest is beside linear maps.

        The generic form has to pass gradients through the whole network for the rest as well.
        """
        served = bool(self.linear or self.multiplied)
        return served and (not self.rest or self.linear_entries > self.rest_entries)

    def serves(self, graph: Graph, samples: int) -> bool:
        """Whether a pass of `samples` samples did what the trial did."""
        return len(graph.steps) == len(self.steps) and all(
            own.same(other, self.samples, samples)
            for own, other in zip(self.steps, graph.steps, strict=True)
        )


def planned(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor, activations: int
) -> Plan:
    """Finds the uses of parameters in a pass of `inputs` `[sample, *shape]` at `params` `[P]`."""
    done = Pass(function, params, inputs)
    consumers = done.consumers(name for name, each in done.leaves.items() if each.numel())
    places = sorted({each.place for some in consumers.values() for each in some})
    fewer = [Pass(function, params, inputs[:-1])] if len(inputs) > 2 else []
    orders = _orders([done, *fewer], places)
    uses = done.uses_of(consumers, orders)
    linear = {
        name: some[0].place for name, some in uses.items() if len(some) == 1 and some[0].linear
    }
    biases = {
        consumers[name][0].place: name
        for name, some in uses.items()
        if len(some) == 1 and consumers[name][0].edge == 0 and some[0].place in linear.values()
    }
    apart = {*linear, *biases.values()}
    multiplied = [name for name, some in uses.items() if some and name not in apart]
    rest = tuple(name for name, some in consumers.items() if some and not uses[name])
    used = {use.place for some in uses.values() for use in some}
    return Plan(
        steps=done.graph.steps,
        samples=done.samples,
        orders=orders,
        linear={name: place in biases for name, place in linear.items()},
        biases=tuple(biases.values()),
        multiplied={name: done.leaves[name].numel() for name in multiplied},
        rest=rest,
        signals=sum(done.graph.numel(place) for place in used) // done.samples
        + max((done.leaves[name].numel() for name in multiplied), default=0),
        activations=activations
        + max((use.other_numbers(done.graph) for some in uses.values() for use in some), default=0),
        classes=done.outputs.shape[1],
        linear_entries=sum(done.leaves[name].numel() for name in linear),
        rest_entries=sum(done.leaves[name].numel() for name in rest),
        folded=all(map(callable, done.graph.nodes)),
    )


def _orders(passes: Sequence[Pass], places: Sequence[int]) -> dict[int, Order]:
    """How the outputs of nodes are ordered, seen from where the gradients of each sample arrive.

    Gradients that are zero may leave several orders possible, such as those of all tokens but the first
    one. Another number of samples may decide then. Otherwise the node is left out.
    """
    possible: dict[int, list[Order]] = {}
    for done in passes:
        undecided = [place for place in places if len(possible.get(place, list(Order))) > 1]
        if undecided and len(done.graph.steps) == len(passes[0].graph.steps):
            for place, found in _candidates(done, undecided).items():
                possible[place] = [each for each in possible.get(place, found) if each in found]
    return {place: found[0] for place, found in possible.items() if len(found) == 1}


def _candidates(done: Pass, places: Sequence[int]) -> dict[int, list[Order]]:
    """The orders that agree with the gradients of each sample."""
    candidates = {place: _possible(done.graph.shape(place), done.samples) for place in places}
    weights = _uneven(done.outputs)
    for sample in range(done.samples):
        only = torch.zeros_like(done.outputs)
        only[sample] = weights
        for place, signal in zip(places, done.signals(places, only), strict=True):
            candidates[place] = [
                order
                for order in candidates[place]
                if _belongs(order.by_sample(signal, done.samples), sample)
            ]
    return candidates


def _possible(shape: Shape, samples: int) -> list[Order]:
    """The orders that an output of this shape can have, without those that mean the same."""
    found = [order for order in Order if order.fits(shape, samples)]
    if samples == 1:
        return found[:1]
    if Order.FIRST in found and shape[0] == samples:
        found.remove(Order.LAST)
    return found


def _uneven(outputs: torch.Tensor) -> torch.Tensor:
    """Different weights for the outputs, `[output]`."""
    return torch.linspace(1, 2, outputs.shape[1]).to(outputs)


def _belongs(signal: torch.Tensor, sample: int) -> bool:
    """Whether a signal `[sample, ...]` is zero for all other samples."""
    others = signal.detach().clone()
    others[sample] = 0
    return not bool(others.any())
