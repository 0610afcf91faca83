"""Which parameters of a module the fast form of the kernel can serve, found in a trial pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mpi_ntkdfl.model.module.backward import Backward
from mpi_ntkdfl.model.module.folded import Gradients, Known
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.graph import Consumer, Graph, Step
from mpi_ntkdfl.model.module.uses import Order, Use, use_of


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
    consumers = done.consumers(done.leaves)
    orders = _orders(done, sorted({each.place for some in consumers.values() for each in some}))
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
    places = {use.place for some in uses.values() for use in some}
    return Plan(
        steps=done.graph.steps,
        samples=done.samples,
        orders=orders,
        linear={name: place in biases for name, place in linear.items()},
        biases=tuple(biases.values()),
        multiplied={name: done.leaves[name].numel() for name in multiplied},
        rest=rest,
        signals=sum(done.graph.numel(place) for place in places) // done.samples
        + max((done.leaves[name].numel() for name in multiplied), default=0),
        activations=activations
        + max((use.other_numbers(done.graph) for some in uses.values() for use in some), default=0),
        classes=done.outputs.shape[1],
        linear_entries=sum(done.leaves[name].numel() for name in linear),
        rest_entries=sum(done.leaves[name].numel() for name in rest),
        folded=all(map(callable, done.graph.nodes)),
    )


def _orders(done: Pass, places: Sequence[int]) -> dict[int, Order]:
    """How the outputs of nodes are ordered, seen from where the gradients of each sample arrive."""
    candidates = {
        place: [order for order in Order if order.fits(done.graph.shape(place), done.samples)]
        for place in places
    }
    weights = torch.linspace(1, 2, done.outputs.shape[1]).to(done.outputs)
    for sample in range(done.samples):
        only = torch.zeros_like(done.outputs)
        only[sample] = weights
        for place, signal in zip(places, done.signals(places, only), strict=True):
            candidates[place] = [
                order
                for order in candidates[place]
                if _belongs(order.by_sample(signal, done.samples), sample)
            ]
    return {place: orders[0] for place, orders in candidates.items() if orders}


def _belongs(signal: torch.Tensor, sample: int) -> bool:
    """Whether a signal `[sample, ...]` is zero for all other samples."""
    others = signal.detach().clone()
    others[sample] = 0
    return not bool(others.any())
