"""A client's round of NTK-DFL in plain code, for comparison: autograd, dense Jacobians, Dormand-Prince.

This file shares no code with the package. One output's Jacobian `[sample, param]` is held at a time.
"""

from __future__ import annotations

import torch
from torch.func import grad, vmap

_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def network(params: torch.Tensor, x: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """Outputs of a ReLU network with a flat parameter vector."""
    start, last = 0, len(widths) - 2
    for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        weight = params[start : start + fan_in * fan_out].view(fan_out, fan_in)
        start += fan_in * fan_out
        x = x @ weight.T + params[start : start + fan_out]
        start += fan_out
        x = x if layer == last else torch.relu(x)
    return x


def jacobian(params: torch.Tensor, x: torch.Tensor, widths: tuple[int, ...], output: int):
    """Gradients of one output by the parameters, [sample, param]."""
    return vmap(grad(lambda w, row: network(w, row, widths)[output]), (None, 0))(params, x)


def left_sums(kernel, outputs, targets, lr, taus, tolerance=1e-8):
    """Sums of the residuals at u = 0, 1, .. and the number of kernel products, in float64."""
    matrix, f = -lr / len(outputs) * kernel.double(), outputs.double()
    products, step, total, found = 0, 0.1, torch.zeros_like(f), []

    def slope(state):
        return matrix @ (torch.softmax(state, 1) - targets)

    for u in range(taus[-1]):
        total += torch.softmax(f, 1) - targets
        now = 0.0
        while now < 1.0:
            trial = min(step, 1.0 - now)
            slopes = [slope(f)]
            for row in _STAGES:
                after = f + trial * sum(a * k for a, k in zip(row, slopes, strict=True))
                slopes.append(slope(after))
            products += len(_STAGES)
            miss = trial * sum(a * k for a, k in zip(_ERROR, slopes, strict=True))
            error = float(miss.norm() / (tolerance * (f.norm() + 1.0)))
            if error <= 1.0:
                f, now = after, now + trial
            step = trial * min(3.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
        if u + 1 in taus:
            found.append(total.clone())
    return found, products


def client_round(w_bar, x, labels, widths, lr, taus):
    """Weights after the evolution with the lowest loss, their tau, and the kernel products."""
    classes = widths[-1]
    outputs = network(w_bar, x, widths)
    targets = torch.eye(classes, dtype=torch.float64)[labels]
    kernel = torch.zeros(len(x), len(x))
    for output in range(classes):
        rows = jacobian(w_bar, x, widths, output)
        kernel += rows @ rows.T / classes
    sums, products = left_sums(kernel, outputs, targets, lr, taus)
    steps = [torch.zeros_like(w_bar) for _ in taus]
    for output in range(classes):
        rows = jacobian(w_bar, x, widths, output)
        for step, total in zip(steps, sums, strict=True):
            step += rows.T @ total[:, output].to(rows.dtype)
    candidates = [w_bar - lr / len(x) * step for step in steps]
    losses = [
        float(torch.nn.functional.cross_entropy(network(w, x, widths), labels)) for w in candidates
    ]
    best = losses.index(min(losses))
    return candidates[best], taus[best], products
