"""One backward pass for several combinations of outputs together.

Autograd passes the gradient of one combination at a time. Here, the gradients of k combinations pass
through the nodes of its graph *folded* into one tensor: an axis of S entries becomes one of k S entries,
where the k gradients alternate in blocks of S / B entries, for B samples. So an operation is called once
instead of k times, on tensors of few samples, which stay in the caches.

A rule (`rules`) computes what a node does to a folded gradient, from what autograd saved in the node. It
is exact if the node treats the blocks one by one, whatever they mean. Nodes without a rule are called k
times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mpi_ntkdfl.model.module.folded import (
    Folded,
    Gradients,
    Known,
    Step,
    as_tuple,
    folded,
    unfolded,
)
from mpi_ntkdfl.model.module.graph import Graph, Shape
from mpi_ntkdfl.model.module.rules import GROUP_NORM, RULES


class Backward:
    """The way from the outputs of a graph back to some of its nodes."""

    def __init__(self, graph: Graph, samples: int, places: Sequence[int]) -> None:
        """Finds the nodes on the way, in an order in which gradients are complete.

        Args:
            graph: the graph.
            samples: B, the number of samples of its outputs `[sample, output]`.
            places: numbers of the nodes at whose outputs gradients are wanted.
        """
        self._graph, self._samples, self._places = graph, samples, frozenset(places)
        readers, needed = graph.readers, graph.above(places)
        self._needed = needed
        missing = {place: len(readers.get(place, ())) for place in needed}
        ready = [place for place in needed if not missing[place]]
        self._order: list[int] = []
        while ready:
            place = ready.pop()
            self._order.append(place)
            for source in graph.steps[place].sources:
                if source in missing:
                    missing[source] -= 1
                    if not missing[source]:
                        ready.append(source)

    def gradients(
        self, outputs: torch.Tensor, directions: torch.Tensor
    ) -> Iterator[tuple[int, Gradients, Known]]:
        """The gradients of combinations of outputs at the wanted nodes.

        Whoever iterates must use one gradient before taking the next one, because its memory is used
        again.

        Args:
            outputs: of the graph, `[sample, output]`.
            directions: the combinations, `[k, output]`.

        Yields:
            The number of a node, the gradients with respect to its first output, and gradients of
            parameters of the node that are known already.
        """
        count = len(directions)
        start = directions.expand(self._samples, *directions.shape).flatten(0, 1)
        arrived: dict[int, dict[int, Gradients]] = {0: {0: Folded(start, own=False)}}
        for place in self._order:
            found, step = arrived.pop(place, {}), self._step(place, count)
            if place in self._places and 0 not in found:
                found[0] = Folded(outputs.new_zeros(step.folded_shape(step.shape)))
            if not found:
                continue
            gradients: Sequence[Gradients | None] = ()
            norm = step.node.name() == GROUP_NORM
            if norm:
                gradients = self._through(step, found)
            if place in self._places:
                yield place, found[0], step.known
            if not norm and any(step.sources):
                gradients = self._through(step, found)
            for source, gradient in zip(step.sources, gradients, strict=False):
                if source and gradient is not None:
                    here = arrived.setdefault(source[0], {})
                    other = here.get(source[1])
                    here[source[1]] = (
                        gradient if other is None else self._sum(other, gradient, count)
                    )

    def _step(self, place: int, count: int) -> Step:
        graph = self._graph
        sources: list[tuple[int, int, Shape] | None] = []
        node = graph.nodes[place]
        for number, (_, index) in zip(graph.steps[place].sources, node.next_functions, strict=True):
            if number in self._needed:
                sources.append((number, index, graph.steps[number].shapes[index]))
            else:
                sources.append(None)
        return Step(node, graph.shape(place), tuple(sources), self._samples, count)

    def _through(self, step: Step, found: dict[int, Gradients]) -> Sequence[Gradients | None]:
        """Gradients for all inputs of a node, from those of its outputs."""
        rule = RULES.get(step.node.name())
        if rule is not None:
            given = [each for _, each in sorted(found.items()) if isinstance(each, Folded)]
            if len(given) == len(found) and len({each.axis for each in given}) == 1:
                wanted = rule(step, given)
                if wanted is not None:
                    return wanted
        parts = {index: unfolded(each, self._samples, step.count) for index, each in found.items()}
        return _called(step, parts)

    def _sum(self, one: Gradients, other: Gradients, count: int) -> Gradients:
        if isinstance(one, Folded) and isinstance(other, Folded) and one.axis == other.axis:
            if one.own:
                return Folded(one.tensor.add_(other.tensor), one.axis)
            if other.own:
                return Folded(other.tensor.add_(one.tensor), one.axis)
            return Folded(one.tensor + other.tensor, one.axis)
        parts = (unfolded(each, self._samples, count) for each in (one, other))
        return [a + b for a, b in zip(*parts, strict=True)]


def _called(step: Step, parts: dict[int, list[torch.Tensor]]) -> list[Gradients | None]:
    """Gradients from a node that is called once per combination."""
    found: list[list[torch.Tensor]] = [[] for _ in step.sources]
    results = len(step.node._input_metadata)
    for number in range(step.count):
        given = [parts[index][number] if index in parts else None for index in range(results)]
        for source, own, gradient in zip(
            step.sources, found, as_tuple(step.node(*given)), strict=True
        ):
            if source and gradient is not None:
                own.append(gradient.sum_to_size(source[2]))
    return [folded(own, step.samples) if own else None for own in found]
