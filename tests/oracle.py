"""The method written out as slowly and plainly as possible: loops, autograd, float64.

Tests compare the package with this. Nothing here is shared with the package but torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of parameters and inputs."""


def unflatten(params: torch.Tensor, widths: tuple[int, ...]) -> list[torch.Tensor]:
    """W1, b1, W2, b2, ... of a flat vector."""
    tensors, start = [], 0
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        tensors.append(params[start : start + fan_in * fan_out].view(fan_out, fan_in))
        start += fan_in * fan_out
        tensors.append(params[start : start + fan_out])
        start += fan_out
    return tensors


def network(params: torch.Tensor, x: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """Outputs [sample, output]."""
    tensors = unflatten(params, widths)
    for index in range(0, len(tensors), 2):
        if index:
            x = torch.relu(x)
        x = x @ tensors[index].T + tensors[index + 1]
    return x


def jacobian(params: torch.Tensor, x: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """J [sample, output, param], one gradient at a time."""
    rows = []
    for sample in x:
        for output in range(widths[-1]):
            point = params.detach().clone().requires_grad_()
            value = network(point, sample[None], widths)[0, output]
            rows.append(torch.autograd.grad(value, point)[0])
    return torch.stack(rows).view(len(x), widths[-1], len(params))


def kernel(j: torch.Tensor) -> torch.Tensor:
    """(1/C) sum_c J_c J_c^T, output by output."""
    return sum(j[:, c] @ j[:, c].T for c in range(j.shape[1])) / j.shape[1]


def left_sums(
    k: torch.Tensor,
    f: torch.Tensor,
    y: torch.Tensor,
    lr: float,
    taus: list[int],
    loss: str,
    fineness: int = 10,
) -> dict[int, torch.Tensor]:
    """sum_{u<tau} (prediction(f(u lr)) - Y) along df/dt = -K (prediction - Y) / N, by small RK4 steps."""

    def residual(z: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(z, 1) if loss == "cross-entropy" else z) - y

    def slope(z: torch.Tensor) -> torch.Tensor:
        return -k @ residual(z) / len(z)

    stiffness = float(torch.linalg.eigvalsh(k)[-1]) / len(f) * lr
    substeps = max(fineness, int(fineness * stiffness) + 1)
    h, total, found = lr / substeps, torch.zeros_like(f), {}
    for u in range(1, max(taus) + 1):
        total = total + residual(f)
        for _ in range(substeps):
            k1 = slope(f)
            k2 = slope(f + h / 2 * k1)
            k3 = slope(f + h / 2 * k2)
            k4 = slope(f + h * k3)
            f = f + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if u in taus:
            found[u] = total
    return found


def loss_of(outputs: torch.Tensor, labels: torch.Tensor, loss: str) -> float:
    """Mean loss."""
    total = 0.0
    for f, label in zip(outputs, labels.tolist(), strict=True):
        if loss == "cross-entropy":
            total += float(torch.logsumexp(f, 0) - f[label])
        else:
            target = torch.zeros_like(f)
            target[label] = 1
            total += 0.5 * float(((f - target) ** 2).sum())
    return total / len(labels)


def ntk_step(
    w: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    widths: tuple[int, ...],
    lr: float,
    taus: list[int],
    loss: str,
) -> tuple[torch.Tensor, int]:
    """Weights evolved from `w` with the kernel of `x`, and their tau, by the loss of the network."""
    functions = partial(network, widths=widths), partial(jacobian, widths=widths)
    return step_of(*functions, w, x, labels, lr, taus, loss)


def step_of(
    outputs: Function,
    entries: Function,
    w: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    lr: float,
    taus: list[int],
    loss: str,
    calibration: float = 0.0,
    linearisations: int = 1,
    fineness: int = 10,
    soft: tuple[float, float] = (0.0, 1.0),
) -> tuple[torch.Tensor, int]:
    """The same for any network, given by its outputs and its Jacobian; evolved several times.

    `soft` is the share of soft labels in the targets, and their temperature.
    """
    classes, total = outputs(w, x).shape[1], 0
    counts = [int((labels == c).sum()) for c in range(classes)]
    shift = [calibration * math.log((n + 1) / (len(x) + classes)) for n in counts]
    shift = torch.tensor(shift, dtype=x.dtype)
    y = torch.eye(classes, dtype=x.dtype)[labels]
    for turn in range(linearisations):
        j, start = entries(w, x), outputs(w, x) + shift
        targets = (1 - soft[0]) * y + soft[0] * torch.softmax(outputs(w, x) / soft[1], dim=1)
        sums = left_sums(kernel(j), start, targets, lr, taus, loss, fineness)
        best = (loss_of(start, labels, loss), w, 0) if turn else None
        for tau in taus:
            step = sum(j[:, c].T @ sums[tau][:, c] for c in range(classes))
            candidate = w - lr / len(x) * step
            value = loss_of(outputs(candidate, x) + shift, labels, loss)
            if best is None or value < best[0]:
                best = value, candidate, tau
        w, total = best[1], total + best[2]
        if not best[2]:
            break
    return w, total


def ntk_dfl_round(
    weights: list[torch.Tensor],
    data: list[tuple[torch.Tensor, torch.Tensor]],
    edges: set[tuple[int, int]],
    widths: tuple[int, ...],
    lr: float,
    taus: list[int],
    loss: str = "cross-entropy",
    by_samples: bool = False,
) -> tuple[list[torch.Tensor], list[int]]:
    """One round of NTK-DFL for all clients; tau by the loss of the network."""
    clients = range(len(weights))
    closed = [[j for j in clients if j == i or (min(i, j), max(i, j)) in edges] for i in clients]
    averages = []
    for i in clients:
        share = {j: float(len(data[j][1])) if by_samples else 1.0 for j in closed[i]}
        averages.append(sum(share[j] * weights[j] for j in closed[i]) / sum(share.values()))
    new, chosen = [], []
    for i in clients:
        x = torch.cat([data[j][0] for j in closed[i]])
        labels = torch.cat([data[j][1] for j in closed[i]])
        evolved, tau = ntk_step(averages[i], x, labels, widths, lr, taus, loss)
        new.append(evolved)
        chosen.append(tau)
    return new, chosen


# ------------------------------------------------------------------------------------ modules of torch


def module_outputs(module: torch.nn.Module, params: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Outputs [sample, output] of a float64 module with other weights, one sample at a time."""
    _trained(module, params)
    with torch.no_grad():
        return torch.cat([module(sample[None]) for sample in x])


def module_jacobian(module: torch.nn.Module, params: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """J [sample, output, param], one gradient at a time."""
    trained, rows = _trained(module, params), []
    for sample in x:
        outputs = module(sample[None])[0]
        for value in outputs:
            rows.append(_flat(value, trained))
    return torch.stack(rows).view(len(x), -1, len(params))


def module_gradient(
    module: torch.nn.Module,
    params: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    shares: torch.Tensor,
    loss: str = "cross-entropy",
) -> torch.Tensor:
    """Gradient of the sum over samples of shares times losses."""
    trained, total = _trained(module, params), torch.zeros_like(params)
    for sample, label, share in zip(x, labels, shares, strict=True):
        outputs = module(sample[None])
        if loss == "cross-entropy":
            value = torch.nn.functional.cross_entropy(outputs, label[None])
        else:
            target = torch.zeros_like(outputs)
            target[0, label] = 1
            value = 0.5 * ((outputs - target) ** 2).sum()
        total += share * _flat(value, trained)
    return total


def module_training(module, params, x, labels, orders, batch, sgd):
    """Passes of torch.optim.SGD in given orders [epoch, sample]."""
    point = params.clone().requires_grad_()
    optimiser = torch.optim.SGD(
        [point], lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay
    )
    for order in torch.from_numpy(orders):
        for chosen in order.split(batch):
            shares = torch.full((len(chosen),), 1 / len(chosen), dtype=params.dtype)
            point.grad = module_gradient(module, point.detach(), x[chosen], labels[chosen], shares)
            optimiser.step()
    return point.detach()


def _trained(module: torch.nn.Module, params: torch.Tensor) -> list[torch.nn.Parameter]:
    """Parameters that require a gradient, set to the pieces of a flat vector."""
    trained = [p for p in module.parameters() if p.requires_grad]
    torch.nn.utils.vector_to_parameters(params.detach(), trained)
    return trained


def _flat(value: torch.Tensor, trained: list[torch.nn.Parameter]) -> torch.Tensor:
    pieces = torch.autograd.grad(
        value, trained, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([piece.reshape(-1) for piece in pieces])
