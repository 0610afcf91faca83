"""The empirical neural tangent kernel of a neighbourhood (Thompson et al., NTK-DFL, step 4)."""

from __future__ import annotations

import torch

from mpi_ntkdfl.model.jacobian import Operator


def trace_kernel(jacobian: Operator, outputs: int) -> torch.Tensor:
    """`K = (1/C) sum_c J_c J_c^T`, `[sample, sample]`, over the stacked samples of a neighbourhood.

    Args:
        jacobian: the Jacobian operator of the N stacked samples.
        outputs: C, the number of outputs.
    """
    return jacobian.trace_gram().div_(outputs)
