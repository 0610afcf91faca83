"""Full-batch gradient descent, which NTK evolution linearises.

The first layer's weights move within the span of the inputs X: `W_1 = W_1(0) - (lr/N) A^T X`, where A is
the sum so far of the signals delta at the layer's outputs Z `[sample, fan_out]`. So a step moves Z by
`-(lr/N) (X X^T + 1) delta`, and the weights themselves are needed only at the end. The Gram matrix is
computed once. This is cheaper than passing through the weights if there are fewer samples than twice the
number of features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpi_ntkdfl.model.jacobian import symmetric_product
from mpi_ntkdfl.model.losses import Loss, one_hot, prediction
from mpi_ntkdfl.model.mlp.stack import Stack
from mpi_ntkdfl.model.params import aligned


def descend(
    stack: Stack,
    params: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    lr: float,
    taus: Sequence[int],
    loss: Loss,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient descent on the mean loss of all samples.

    Args:
        stack: the network.
        params: the starting point, `[param]`.
        inputs: `[sample, feature]`.
        labels: `[sample]` integers.
        lr: learning rate.
        taus: numbers of steps after which the weights are returned, ascending.
        loss: the name of the loss.
        shift: what is added to the outputs in the loss, `[output]`; None for nothing.

    Returns:
        The weights after each of `taus`, `[tau, param]`.
    """
    samples, features = inputs.shape
    inputs, targets = aligned(inputs), one_hot(labels, stack.widths[-1], inputs.dtype)
    (weight, bias), *above = stack.weights_and_biases(aligned(params))
    first = torch.nn.functional.linear(inputs, weight, bias)
    total = torch.zeros_like(first)
    layers = [(w.clone(), b.clone()) for w, b in above]
    rate = lr / samples
    gram = symmetric_product(inputs).add_(1) if samples < 2 * features else None
    wanted = []
    for step in range(1, taus[-1] + 1):
        delta = _step(first, layers, targets, rate, loss, shift)
        total.add_(delta)
        if gram is not None:
            first.addmm_(gram, delta, alpha=-rate)
        else:
            first.addmm_(inputs, inputs.T @ delta, alpha=-rate).sub_(delta.sum(0), alpha=rate)
        if step in taus:
            moved = [(weight - rate * (total.T @ inputs), bias - rate * total.sum(0)), *layers]
            wanted.append(torch.cat([tensor.flatten() for pair in moved for tensor in pair]))
    return torch.stack(wanted)


def _step(
    first: torch.Tensor,
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    targets: torch.Tensor,
    rate: float,
    loss: Loss,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """Takes one step of all layers but the first, in place.

    Args:
        first: outputs of the first layer before its ReLU, `[sample, fan_out]`.
        layers: weights and biases of the other layers.
        targets: one-hot, `[sample, output]`.
        rate: learning rate divided by the number of samples.
        loss: the name of the loss.
        shift: what is added to the outputs in the loss, `[output]`; None for nothing.

    Returns:
        The gradient of N times the loss with respect to `first`.
    """
    outputs, kept = first, []
    for weight, bias in layers:
        kept.append(outputs.relu())
        outputs = torch.nn.functional.linear(kept[-1], weight, bias)
    delta = prediction(outputs if shift is None else outputs + shift, loss) - targets
    for (weight, bias), below in zip(reversed(layers), reversed(kept), strict=True):
        back = (delta @ weight).mul_(below > 0)
        weight.addmm_(delta.T, below, alpha=-rate)
        bias.sub_(delta.sum(0), alpha=rate)
        delta = back
    return delta
