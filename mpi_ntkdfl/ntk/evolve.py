"""Evolution of one client's network outputs under its neural tangent kernel.

Notation.  Public arrays are [sample, output], with N samples and C outputs, and the kernel is
[sample, sample].  The integration works on [output, sample].  Time ``u`` is counted in gradient
steps: ``tau`` steps of rate ``lr`` reach ``t = tau * lr``.  With outputs ``f``, one-hot targets
``Y``, c = lr / N and the residual ``g``, the outputs follow

    df/du = -c K g(f),    g(f) = softmax(f) - Y   or   f - Y.

The weight update after ``tau`` steps is linear in the left sum

    S(tau) = sum_{u=0}^{tau-1} g(f(u))

(Thompson, Yue, Wong, Dai, "NTK-DFL: Enhancing Decentralized Federated Learning in Heterogeneous
Settings via Neural Tangent Kernel", ICML 2025).

The squared loss has a closed form in the eigenbasis of K.

Cross-entropy.  With the integral ``z(u) = int_0^u g`` the outputs are ``f = f(0) - c K z``.
Most of K lies in a few directions.  A Nystroem factor F [rank, sample] (Halko, Martinsson, Tropp,
SIAM Review 53, 2011) splits ``K = F^T F + K'``, where K' is positive semidefinite and small, so

    f = f(0) - c F^T a - R,    a = F z  (fast: rank numbers per output),    R = c K' z  (slow).

* Outer steps.  At the end of each outer step one product of K' with [z, g] gives R and its
  derivative R' = c K' g.  Over the next outer step R is extrapolated: a polynomial in
  log(u + shift) takes its values and slopes from the last three ends.  The logarithm is used
  because residuals decay on longer and longer time scales; a polynomial in u could extrapolate
  only half as far.  The difference between the extrapolated R and the R that is computed
  afterwards controls the step size.
* Inner steps.  Along the extrapolated R, an explicit Runge-Kutta pair integrates a and z.  It uses
  F only, and never K.  The fast directions soon follow the slow ones; from then on stability
  limits the step size.  The pair has order 4, six stages and is stable to -9.7 on the negative
  axis, three times as far as the pair of Dormand and Prince.
* Left sums.  On every inner step a polynomial of degree 5 takes z, z' = g and z'' from both ends.
  Its derivative is summed over the integers inside the step.  On long steps this is the
  Euler-Maclaurin formula.

The result is right for every F, because the products with K' are exact.  F only decides how many
products and steps are needed.

Error measure.  An error ``e`` of S changes the update by ``J^T e``, whose squared norm is
``e^T K e``.  The squared norm for S itself is ``<z, f(0) - f> / c``, which costs no product with K,
and is at least ``|a|^2``.  The flow is contractive in this norm, so the error of the result is at most
the sum of the steps' errors.

The scheme is implemented twice, and both implementations read their numbers from `scheme`:
`compiled` is C for one client on a CPU, and `evolve_batch` is tensors for many clients on any device.
The tensors also serve where there was no compiler at installation.
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
        products: number of products of K with an array of C columns that were computed; 0 for the
            squared loss, which is solved by an eigendecomposition instead.
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
    """Evolves the outputs and sums the residuals over the first tau steps.

    Args:
        kernel: K [sample, sample], symmetric positive semidefinite, float32 or float64.
        outputs: f(0) [sample, output].
        targets: one-hot Y [sample, output].
        lr: learning rate, positive.
        taus: numbers of steps, positive and ascending.
        loss: "cross-entropy" or "squared".
        tolerance: intended bound of the update's relative error, ``sqrt(e^T K e / S^T K S)``, where e
            is the error of S.  Rounding errors are a few 1e-6 in float32 and 1e-13 in float64, so a
            smaller tolerance gains nothing.  The squared loss is exact to rounding.
        overwrite: whether the kernel may be overwritten.  The tensor version then needs no copy of it.
        implementation: "tensor", or "compiled", which needs arrays on a CPU and a build that
            `compiled.find` returns.

    Returns:
        The evolution, in the type and on the device of the inputs.

    Raises:
        ValueError: if a shape, type, loss or number does not fit, or if there is no build.
        ArithmeticError: if a value becomes non-finite, if the step size becomes too small to advance u,
            or if `scheme.MOST_TRIALS` inner steps were not enough.
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
        wanted: the setting `compute.evolution`: auto, compiled or tensor.
        device: the device of the run.
        dtype: the type of the run's numbers.

    Raises:
        InputError: if `compiled` is wanted and cannot be used here.
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
    """Checks shapes, types, devices and values.

    Raises:
        ValueError: if one does not fit; the message names what was expected and what was given.
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
        # The minimum and maximum are NaN if any value is. They are found in one pass and without a
        # second array of the kernel's size.
        if not torch.stack(torch.aminmax(array)).isfinite().all():
            raise ArithmeticError(f"{name} holds a value that is not finite")


def _check_numbers(lr: float, taus: Sequence[int], tolerance: float) -> tuple[int, ...]:
    """Checks the numbers, and returns `taus` as a tuple.

    Raises:
        ValueError: if one does not fit; the message names what was expected and what was given.
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

    All of it is computed in float64. In float32 every eigenvalue would have an error of 1e-7 times
    the largest one, and errors of small eigenvalues enter S multiplied by tau^2.
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
