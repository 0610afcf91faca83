"""Attacks: the samples that follow from what a client told its neighbour.

A neighbour knows the network, the point at which it asked for the Jacobian, and the matrices of a
projection, because all clients draw the same ones. The attacks are:

* *read*: the message contains the inputs;
* *division*: the first layer is linear in the inputs, so the quotient of two derivatives, by a weight and
  by the bias of the same unit, is an input (Zhu and Blaschko, "R-GAP", ICLR 2021, section 3);
* *linear*: the same for projections that have as many numbers as a layer has inputs. Layer by layer from
  the outputs, the layer's input solves a linear system, because the signals follow from the inputs of the
  layers above;
* *matching*: gradient descent on inputs whose Jacobian should be the one in the message (Zhu, Liu, Han,
  "Deep leakage from gradients", NeurIPS 2019; Geiping et al., "Inverting gradients", NeurIPS 2020);
* *update*: from weights only, the change of a unit's weights divided by that of its bias, which is a mean
  of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.audit.overheard import Overheard, Told
from mpi_ntkdfl.federation import raw_samples
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.projected import projection_of_round
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.projection import Part, Projection
from mpi_ntkdfl.runtime.seeds import generator

STEPS = 300
"""Steps of a matching attack per sample."""

_STEP = 0.1
"""Length of its first steps, in deviations of the inputs; steps get shorter as half a cosine."""


@dataclass(frozen=True)
class Guess:
    """What an attack gives.

    Attributes:
        attack: its name.
        inputs: guessed inputs, `[sample, *shape]`; None if there is no attack on these messages.
        ordered: whether guess n belongs to sample n; otherwise nobody knows to which sample.
        labels: labels of the samples, `[sample]`; None if they are not in the message.
        histogram: guessed shares of the classes among all samples of the sender, `[class]`; None if the
            sender's labels are in the message.
    """

    attack: str
    inputs: torch.Tensor | None
    ordered: bool = True
    labels: torch.Tensor | None = None
    histogram: torch.Tensor | None = None


def attack(overheard: Overheard, told: Told, steps: int = STEPS, matching: bool = False) -> Guess:
    """The strongest of the attacks on what one client told.

    Args:
        overheard: the round.
        told: the messages.
        steps: of a matching attack.
        matching: whether matching is preferred to the attacks that need linear layers.
    """
    f, arrays, network = overheard.federation, told.arrays, overheard.federation.network
    if not arrays:
        return _from_update(network, told)
    labels = arrays["labels"].long()
    if "entries" not in arrays or "inputs" in arrays:
        return Guess("read", _read(f, arrays), labels=labels)
    projection = None
    if arrays["entries"].shape[2] != network.layout.size:
        width = overheard.config.algorithm.projection  # type: ignore[attr-defined]
        projection = projection_of_round(f, width, overheard.round)
    if matching or not _linear_layers(network) or not _determined(network, projection):
        return Guess("matching", _matched(network, told, projection, steps), labels=labels)
    if projection is None:
        return Guess("division", _divided(network, arrays["entries"]), labels=labels)
    return Guess("linear", Stack.of(network, told, projection).solved(), labels=labels)


def _determined(network: Network, projection: Projection | None) -> bool:
    """Whether a message has at least as many numbers about each layer as the layer has inputs."""
    if projection is None:
        return True
    fan_ins = [shape[1] for shape in network.layout.shapes.values() if len(shape) == 2]
    return network.classes * projection.width >= max(fan_ins)


def _read(f: Federation, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
    """Inputs that a message contains, `[sample, *shape]`."""
    if "inputs" in arrays and arrays["inputs"].dtype == torch.uint8:
        return raw_samples.together(f, [arrays]).inputs
    if "inputs" in arrays:
        return arrays["inputs"]
    assert f.network.factored is not None
    return f.network.factored.inputs(arrays)


# ----------------------------------------------------------------------------------- linear layers


def _linear_layers(network: Network) -> int:
    """How many linear layers with a bias follow each other from the inputs on; 0 if the first is none."""
    shapes, width, count = list(network.layout.shapes.values()), int(np.prod(network.shape)), 0
    for weight, bias in zip(shapes[::2], shapes[1::2], strict=False):
        if len(weight) != 2 or weight[1] != width or bias != weight[:1]:
            break
        width, count = weight[0], count + 1
    return count


def _divided(network: Network, entries: torch.Tensor) -> torch.Tensor:
    """Inputs from the dense derivatives by weights and biases of the first layer, `[sample, *shape]`."""
    (units, features), samples = next(iter(network.layout.shapes.values())), len(entries)
    weights = entries[:, :, : units * features].double().reshape(samples, -1, features)
    biases = entries[:, :, units * features : units * (features + 1)].double().reshape(samples, -1)
    inputs = torch.einsum("nsf,ns->nf", weights, biases) / biases.square().sum(1)[:, None]
    return inputs.nan_to_num().view(samples, *network.shape)


@dataclass(frozen=True)
class Stack:
    """The linear attack on a network of linear layers with ReLU between them.

    `J_l P_l` is linear in the layer's input a_l for given signals. The signals of the last layer are
    known, and those of a layer below follow from the weights and from which units are open.

    Attributes:
        layers: weights `[unit, feature]` and biases of the layers, in float64.
        parts: the layers in the message, with their matrices; None for a layer that is not projected.
        entries: of the message, `[sample, output, column]`.
        outputs: of the network, `[sample, output]`.
        shape: of a sample.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    parts: list[tuple[Part, torch.Tensor | None]]
    entries: torch.Tensor
    outputs: torch.Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, network: Network, told: Told, projection: Projection) -> Stack:
        """The attack on a message."""
        assert told.point is not None
        tensors = [tensor.double() for tensor in network.layout.unflatten(told.point).values()]
        return cls(
            list(zip(tensors[::2], tensors[1::2], strict=True)),
            [(part, _matrix(projection, part)) for part in projection.parts],
            told.arrays["entries"].double(),
            told.arrays["outputs"].double(),
            network.shape,
        )

    def solved(self) -> torch.Tensor:
        """The inputs, `[sample, *shape]`."""
        every = [self._sample(n) for n in range(len(self.entries))]
        return torch.stack(every).view(-1, *self.shape)

    def _sample(self, n: int) -> torch.Tensor:
        """The inputs of a sample: layer by layer, and again with the units that these inputs open."""
        passed, seen = self.outputs[n], self.entries[n]
        signals, inputs = torch.eye(len(passed), dtype=passed.dtype), passed
        opened: list[torch.Tensor] = []
        for place in reversed(range(len(self.layers))):
            inputs = self._layer(place, signals, seen)
            if place:
                opened.insert(0, inputs > _OPEN * inputs.abs().max())
                signals = (signals @ self.layers[place][0]) * opened[0]
        for _ in range(_AGAIN):
            hidden, gates = inputs, []
            for weight, bias in self.layers[:-1]:
                hidden = torch.relu(weight @ hidden + bias)
                gates.append(hidden > 0)
            if all(torch.equal(a, b) for a, b in zip(gates, opened, strict=True)):
                break
            signals = torch.eye(len(passed), dtype=passed.dtype)
            for (weight, _), gate in zip(reversed(self.layers[1:]), reversed(gates), strict=True):
                signals = (signals @ weight) * gate
            opened, inputs = gates, self._layer(0, signals, seen)
        return inputs

    def _layer(self, place: int, signals: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The input `[feature]` of a layer.

        Args:
            place: of the layer.
            signals: `[output, unit]`.
            seen: entries, `[output, column]`.
        """
        (weight, _), (part, matrix) = self.layers[place], self.parts[place]
        (units, features), seen = weight.shape, seen[:, part.columns]
        if matrix is None:
            entries = seen[:, : units * features].reshape(-1, features)
            return entries.T @ signals.flatten() / signals.square().sum().clamp(min=1e-30)
        by_unit = matrix[: units * features].view(units, -1)
        system = (signals.to(matrix) @ by_unit).double().view(len(seen), features, -1)
        system = system.transpose(1, 2).flatten(0, 1)
        wanted = (seen - signals @ matrix[units * features :].double()).flatten()
        gram, right = system.T @ system, system.T @ wanted
        solution: torch.Tensor = torch.linalg.pinv(gram, rtol=1e-9, hermitian=True) @ right
        return solution


_OPEN, _AGAIN = 1e-5, 3
"""Recovered outputs of a ReLU below this fraction of the largest one count as 0; how often the inputs are
computed again with the units that they open."""

_MOST_DOUBLE = 2**25
"""Matrices with more numbers stay in float32."""


def _matrix(projection: Projection, part: Part) -> torch.Tensor | None:
    if not part.projected:
        return None
    (matrix,) = projection.rows(part, [part.size])
    return matrix.double() if matrix.numel() <= _MOST_DOUBLE else matrix


# --------------------------------------------------------------------------------- gradient matching


def _matched(
    network: Network, told: Told, projection: Projection | None, steps: int
) -> torch.Tensor:
    """Inputs whose Jacobian is close to that of the message, by Adam, `[sample, *shape]`."""
    assert told.point is not None
    targets = told.arrays["entries"]
    project = _projector(projection, targets)
    rng = generator(0, "matching attack", told.sender)
    guesses = []
    for target in targets:
        first = torch.from_numpy(0.1 * rng.standard_normal((1, *network.shape))).to(targets)
        guesses.append(_descended(network, told.point, first, target, project, steps))
    return torch.cat(guesses)


def _projector(
    projection: Projection | None, like: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that turns dense entries `[output, param]` into those of a message."""
    if projection is None:
        return lambda entries: entries
    matrices = [(part, _matrix(projection, part)) for part in projection.parts]
    pieces = [(part, None if m is None else m.to(like)) for part, m in matrices]

    def project(entries: torch.Tensor) -> torch.Tensor:
        columns = []
        for part, matrix in pieces:
            own = entries[:, part.start : part.stop]
            columns.append(own if matrix is None else own @ matrix)
        return torch.cat(columns, dim=1)

    return project


def _descended(
    network: Network,
    point: torch.Tensor,
    guess: torch.Tensor,
    target: torch.Tensor,
    project: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
) -> torch.Tensor:
    """Descent on the squared distance of Jacobians, relative to the target; the best guess counts."""
    params, guess = point.clone().requires_grad_(), guess.requires_grad_()
    directions, size = torch.eye(len(target), dtype=target.dtype), target.square().sum()
    # Adam by hand: torch.optim imports torch's compiler at its first step, which takes seconds.
    mean, square = torch.zeros_like(guess), torch.zeros_like(guess)
    best, least = guess.detach().clone(), float("inf")
    for step in range(steps):
        outputs = network.outputs(params, guess)[0]
        (rows,) = torch.autograd.grad(
            outputs, params, directions, create_graph=True, is_grads_batched=True
        )
        distance = (project(rows) - target).square().sum() / size
        value = float(distance.detach())
        if value < least:
            best, least = guess.detach().clone(), value
        (gradient,) = torch.autograd.grad(distance, guess)
        mean, square = mean.lerp(gradient, 0.1), square.lerp(gradient.square(), 0.001)
        mean_now, square_now = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        length = 0.5 * _STEP * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            guess -= length * mean_now / (square_now.sqrt() + 1e-8)
    return best


# -------------------------------------------------------------------------------------- weights only


def _from_update(network: Network, told: Told) -> Guess:
    """What follows from the change of a client's weights.

    A neighbour knows the weights before if it knows all of the sender's neighbourhood, as on a complete
    graph. So this is the most that the messages can give to this attack.
    """
    sent = told.vectors.get("weights")
    if sent is None or bool((sent == told.before).all()):
        return Guess("none", None)
    change = (sent if told.changes else sent - told.before).double()
    tensors = list(network.layout.unflatten(change).values())
    moved = tensors[-1]  # by the gradient of the loss: minus (predicted share - share)
    histogram = None
    if moved.shape == (network.classes,):
        histogram = (moved - moved.min()) / (moved - moved.min()).sum().clamp(min=1e-30)
    if not _linear_layers(network):
        return Guess("update", None, False, histogram=histogram)
    weight, bias = tensors[:2]
    moving = bias.abs() > 1e-3 * bias.abs().max()
    inputs = weight[moving] / bias[moving][:, None]
    return Guess("update", inputs.view(-1, *network.shape), False, histogram=histogram)
