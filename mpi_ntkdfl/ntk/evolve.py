"""Evolution of one client's network outputs under its neural tangent kernel.

Notation.  Public arrays are [sample, output] (N samples, C outputs) and the kernel is
[sample, sample]; the integration works on [output, sample].  Time ``u`` is counted in gradient
steps: ``tau`` steps of rate ``lr`` reach ``t = tau * lr``.  With outputs ``f``, one-hot targets
``Y``, c = lr / N and the residual ``g``,

    df/du = -c K g(f),    g(f) = softmax(f) - Y   or   f - Y,

and the weight update after ``tau`` steps is linear in the left sum (Thompson, Yue, Wong, Dai,
"NTK-DFL: Enhancing Decentralized Federated Learning in Heterogeneous Settings via Neural
Tangent Kernel", ICML 2025)

    S(tau) = sum_{u=0}^{tau-1} g(f(u)).

The squared loss has a closed form in the eigenbasis of K.

Cross-entropy.  With the integral ``z(u) = int_0^u g`` the outputs are ``f = f(0) - c K z``.
A few directions carry most of K: a Nystroem factor F [rank, sample] (Halko, Martinsson, Tropp,
SIAM Review 53, 2011) splits ``K = F^T F + K'`` with K' positive semidefinite and small, hence

    f = f(0) - c F^T a - R,    a = F z  (fast, rank numbers an output),    R = c K' z  (slow).

* Outer steps.  R and R' = c K' g are computed at the ends of the outer steps, by one product of
  K' with [z, g], and extrapolated over the next step by the polynomial in log(u + shift) that
  matches both at the last three ends: residuals decay on ever longer scales, on which a
  polynomial in u reaches half as far.  The difference from the R computed afterwards controls
  the step.
* Inner steps.  Along that path, a and z are integrated by an explicit Runge-Kutta pair that
  touches F and not K.  The fast directions soon follow the slow ones and the steps are bound by
  stability, so the pair, of order 4 in six stages, is stable to -9.7 on the negative axis, three
  times as far as that of Dormand and Prince.
* Left sums.  On every inner step the quintic that matches z, z' = g and z'' at both ends is
  differentiated and summed over the integers inside the step; on long steps this is the
  Euler-Maclaurin formula.

Any F gives the right answer, as K' enters by its exact products; F decides the cost alone.

Error measure.  An error ``e`` of S moves the update by ``J^T e``, of squared norm ``e^T K e``;
for S itself this is ``<z, f(0) - f> / c``, which costs no product, and at least ``|a|^2``.  In this
norm the flow is contractive, so the errors of the steps at most add up.

The scheme is implemented twice, with the numbers of `scheme`: for one client on a CPU in C (`compiled`),
and for many clients in tensors on any device (`evolve_batch`), which also serves where there was no
compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mpi_ntkdfl.model.losses import unknown_loss
from mpi_ntkdfl.ntk import compiled
from mpi_ntkdfl.ntk.evolve_batch import evolve_batch
from mpi_ntkdfl.runtime.device import HOST
from mpi_ntkdfl.runtime.errors import InputError

DEFAULT_TOLERANCE = 1e-5
"""Bound on the relative error of the weight update."""

Implementation = Literal["compiled", "tensor"]
"""What integrates the cross-entropy loss."""


@dataclass(frozen=True)
class Evolution:
    """Residual sums and outputs at the requested numbers of steps.

    Attributes:
        taus: numbers of steps, ascending.
        residual_sums: S(tau) [tau, sample, output].
        outputs: f(tau * lr) [tau, sample, output].
        products: kernel products spent, counted in columns of the other factor over C; 0 for
            the squared loss, which takes an eigendecomposition instead.
    """

    taus: tuple[int, ...]
    residual_sums: torch.Tensor
    outputs: torch.Tensor
    products: int


def evolve(
    kernel: torch.Tensor,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    taus: Sequence[int],
    loss: str = "cross-entropy",
    tolerance: float = DEFAULT_TOLERANCE,
    overwrite: bool = False,
    implementation: Implementation = "tensor",
) -> Evolution:
    """Evolve the outputs and sum the residuals over the first tau steps.

    Args:
        kernel: K [sample, sample], symmetric positive semidefinite, float32 or float64.
        outputs: f(0) [sample, output].
        targets: one-hot Y [sample, output].
        lr: learning rate, positive.
        taus: numbers of steps, positive and ascending.
        loss: "cross-entropy" or "squared".
        tolerance: bound aimed at for the error of the update relative to the update,
            ``sqrt(e^T K e / S^T K S)`` with e the error of S.  Rounding sets a floor of a few
            1e-6 in float32 and 1e-13 in float64.  The squared loss is exact to rounding.
        overwrite: whether the kernel's memory may be used, which spares the tensor version another of
            its size.
        implementation: "compiled", for tensors on a CPU where `compiled.find` finds a build, or "tensor".

    Returns:
        The evolution, in the type and on the device of the inputs.

    Raises:
        ValueError: on a shape, type, loss or number that does not fit, or if there is no build.
        ArithmeticError: if a value turns non-finite, the step size collapses, or there is no end after
            `scheme.MOST_TRIALS` inner steps.
    """
    marks = _check_numbers(lr, taus, tolerance)
    _check_arrays(kernel, outputs, targets)
    if loss == "squared":
        return _evolve_squared(kernel, outputs, targets, lr, marks)
    if loss != "cross-entropy":
        raise unknown_loss(loss)
    if implementation == "compiled":
        if outputs.device != HOST:
            raise ValueError(f"the compiled evolution is for CPUs, got arrays on {outputs.device}")
        build = compiled.find(outputs.dtype)
        if isinstance(build, str):
            raise ValueError(f"there is no compiled evolution: {build}")
        return Evolution(marks, *build.evolve(kernel, outputs, targets, lr, marks, tolerance))
    own = kernel if overwrite else kernel.clone()
    sizes = [len(outputs)]
    batch = evolve_batch(own[None], outputs[None], targets[None], sizes, lr, marks, tolerance)
    if batch.failures[0]:
        raise ArithmeticError(batch.failures[0])
    return Evolution(marks, batch.residual_sums[0], batch.outputs[0], batch.products)


def choose(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[Implementation, str]:
    """Decides for this process which version evolves, and says why.

    Args:
        wanted: `compute.evolution`: auto, compiled or tensor.
        device: where the run computes.
        dtype: in which type of number.

    Raises:
        InputError: if `compiled` is wanted and does not serve here.
    """
    if wanted == "tensor":
        return "tensor", "compute.evolution is tensor"
    build = compiled.find(dtype) if device == HOST else "the compiled version is for CPUs only"
    if isinstance(build, compiled.Build):
        return "compiled", f"built for {build.level}"
    if wanted == "compiled":
        raise InputError(
            f"compute.evolution=compiled cannot be used: {build}; use auto or tensor, or install "
            "mpi_ntkdfl again where there is a C compiler"
        )
    return "tensor", build


def _check_arrays(kernel: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Check shapes, types, devices and values.

    Raises:
        ValueError: naming what was expected and what was given.
        ArithmeticError: if a value is not finite.
    """
    if outputs.ndim != 2 or outputs.shape[0] < 1 or outputs.shape[1] < 2:
        raise ValueError(f"expected outputs [N >= 1, C >= 2], got {tuple(outputs.shape)}")
    if outputs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected float32 or float64 outputs, got {outputs.dtype}")
    square = (outputs.shape[0], outputs.shape[0])
    wanted = f"{outputs.dtype} on {outputs.device}"
    for name, array, shape in (
        ("outputs", outputs, tuple(outputs.shape)),
        ("kernel", kernel, square),
        ("targets", targets, tuple(outputs.shape)),
    ):
        if tuple(array.shape) != shape:
            raise ValueError(f"expected {name} {shape}, got {tuple(array.shape)}")
        if (array.dtype, array.device) != (outputs.dtype, outputs.device):
            raise ValueError(f"expected {name} {wanted}, got {array.dtype} on {array.device}")
        # Both extremes are NaN if any value is; one pass, no temporary of the kernel's size.
        if not torch.stack(torch.aminmax(array)).isfinite().all():
            raise ArithmeticError(f"{name} holds a value that is not finite")


def _check_numbers(lr: float, taus: Sequence[int], tolerance: float) -> tuple[int, ...]:
    """Return taus as a tuple.

    Raises:
        ValueError: naming what was expected and what was given.
    """
    for name, value in (("lr", lr), ("tolerance", tolerance)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"expected {name} positive and finite, got {value}")
    marks = tuple(int(tau) for tau in taus)
    if not marks or any(a >= b for a, b in zip((0, *marks), marks, strict=False)):
        raise ValueError(f"expected positive ascending taus, got {list(taus)}")
    return marks


def _evolve_squared(
    kernel: torch.Tensor,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    taus: tuple[int, ...],
) -> Evolution:
    """Closed form for the squared loss.

    With K = Q diag(lambda) Q^T and a = lambda lr / N,
    ``f(tau) = Y + Q diag(e^{-a tau}) Q^T (f0 - Y)`` and
    ``S(tau) = Q diag((1 - e^{-a tau}) / (1 - e^{-a})) Q^T (f0 - Y)``.

    In float64 throughout: an eigenvalue found in float32 is off by 1e-7 of the largest one,
    and small eigenvalues enter S multiplied by tau^2.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    rate = values.clamp(min=0.0) * (lr / kernel.shape[0])
    residual = vectors.T @ (outputs - targets).double()
    sums, states = [], []
    for tau in taus:
        ratio = torch.expm1(-rate * tau) / torch.expm1(-rate)
        ratio = torch.where(rate > 0, ratio, float(tau))
        sums.append(vectors @ (ratio[:, None] * residual))
        states.append(targets + vectors @ (torch.exp(-rate * tau)[:, None] * residual))
    kind = outputs.dtype
    return Evolution(taus, torch.stack(sums).to(kind), torch.stack(states).to(kind), products=0)
