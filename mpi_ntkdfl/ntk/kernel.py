"""The empirical neural tangent kernel of a neighbourhood (Thompson et al., NTK-DFL, step 4)."""

from __future__ import annotations

import math

import numpy as np
import torch

from mpi_ntkdfl.model.jacobian import DirectedOperator, Operator


def trace_kernel(jacobian: Operator, outputs: int) -> torch.Tensor:
    """`K = (1/C) sum_c J_c J_c^T`, `[sample, sample]`, over the stacked samples of a neighbourhood.

    Args:
        jacobian: the Jacobian operator of the N stacked samples.
        outputs: C, the number of outputs.
    """
    return jacobian.trace_gram().div_(outputs)


def estimated_kernel(jacobian: DirectedOperator, directions: torch.Tensor) -> torch.Tensor:
    """An unbiased estimate of the trace kernel, `[sample, sample]`, from some combinations of outputs.

    Args:
        jacobian: Operator of the N stacked samples.
        directions: the result of `orthonormal_directions`.
    """
    return jacobian.trace_gram(directions).div_(directions.shape[1])


def orthonormal_directions(generator: np.random.Generator, number: int, outputs: int) -> np.ndarray:
    """Random orthonormal combinations of outputs, scaled by `sqrt(C / k)`, `[direction, output]` float64.

    `sum_d |v_d|^2 = C`, and the mean of `sum_d v_d v_d^T` over all draws is the identity. For k = C it is
    the identity in every draw, so the kernel is exact.

    Args:
        generator: draws the directions.
        number: k.
        outputs: C.
    """
    basis, upper = np.linalg.qr(generator.standard_normal((outputs, number)))
    signs = np.sign(np.diag(upper))
    directions: np.ndarray = math.sqrt(outputs / number) * (basis * signs).T
    return np.ascontiguousarray(directions)
