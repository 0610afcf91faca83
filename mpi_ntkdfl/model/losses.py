"""Losses on network outputs, and their gradients with respect to the outputs.

Cross-entropy: `L = mean_n -log softmax(f_n)[y_n]`. Squared: `L = mean_n 1/2 ||f_n - Y_n||^2`. For both,
the gradient with respect to the outputs is `(prediction(f) - Y) / N`, where the prediction is the softmax
or the identity. NTK evolution follows this gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from mpi_ntkdfl.model.params import outside

Loss = Literal["cross-entropy", "squared"]
Outputs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A network: a function from parameters `[P]` and inputs to outputs `[sample, output]`."""


def one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Targets Y `[sample, output]` of integer `labels` `[sample]`."""
    return torch.nn.functional.one_hot(labels.long(), classes).to(dtype)


def unknown_loss(loss: str) -> ValueError:
    """The exception for a loss that does not exist."""
    return ValueError(f'expected loss "cross-entropy" or "squared", got {loss!r}')


def prediction(outputs: torch.Tensor, loss: Loss) -> torch.Tensor:
    """What is compared with the targets, of `outputs` `[..., output]`: their softmax, or themselves.

    Raises:
        ValueError: if there is no such loss.
    """
    if loss == "cross-entropy":
        return outputs.softmax(-1)
    if loss != "squared":
        raise unknown_loss(loss)
    return outputs


def loss_value(outputs: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The losses `[...]` of `outputs` `[..., sample, output]` against integer labels `[sample]`."""
    return sample_losses(outputs, labels, loss).mean(-1)


def sample_losses(outputs: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The losses of the single samples, `[..., sample]`; their mean is the loss.

    Raises:
        ValueError: if there is no such loss.
    """
    if loss == "cross-entropy":
        # This is ten times faster than torch's function if the samples are the last axis in memory.
        places = labels.long().expand(outputs.shape[:-1])[..., None]
        right = outputs.gather(-1, places)[..., 0]
        return torch.logsumexp(outputs, -1) - right
    if loss != "squared":
        raise unknown_loss(loss)
    targets = one_hot(labels, outputs.shape[-1], outputs.dtype)
    return 0.5 * (outputs - targets).square().sum(-1)


def correct(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Number of samples of each class whose largest output is at their label, `[..., class]` integers.

    Args:
        outputs: `[..., sample, output]`.
        labels: `[sample]`.
    """
    # `max` is used, since `argmax` is slow if the samples are the last axis in memory.
    hits = outputs.max(-1).indices == labels
    # `bincount` is not used, since on a GPU the host would have to wait for its result.
    shape = (*outputs.shape[:-2], outputs.shape[-1])
    counts = torch.zeros(shape, dtype=torch.int64, device=outputs.device)
    return counts.scatter_add_(-1, labels.long().expand(hits.shape), hits.long())


def shifted(outputs: Outputs, shift: torch.Tensor | None) -> Outputs:
    """The network `outputs` with `shift` `[output]` added to its outputs; itself if `shift` is None."""
    if shift is None:
        return outputs
    constant = outside(shift)
    return lambda params, inputs: outputs(params, inputs) + constant


def loss_gradient(
    outputs: Outputs,
    params: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient `[P]` of the loss at `params` `[P]`, by one backward pass over all samples.

    Args:
        outputs: the network, a function from parameters and inputs to outputs `[sample, output]`.
        params: the parameters at which the gradient is taken.
        inputs: inputs of the samples, `[sample, *shape]`.
        labels: labels of the samples, integers `[sample]`.
        loss: the name of the loss.
        shares: weight of each sample's loss, `[sample]`; None for 1 / N.
    """
    with torch.inference_mode(False):
        point = params.clone().requires_grad_()
        inputs, labels = outside(inputs), outside(labels)
        losses = sample_losses(outputs(point, inputs), labels, loss)
        value = losses.mean() if shares is None else torch.dot(losses, outside(shares))
        if not value.requires_grad:  # none of these samples reaches a parameter
            return torch.zeros_like(params)
        (gradient,) = torch.autograd.grad(value, point)
        return gradient
