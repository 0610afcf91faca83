"""Nystroem factors of many kernels at once, for `evolve_batch`."""

from __future__ import annotations

import torch

from mpi_ntkdfl.ntk import scheme


def nystroem_factors(kernels: torch.Tensor) -> torch.Tensor:
    """A factor F `[client, rank, sample]` of each kernel, with zeros for rows left out; see `evolve`."""
    image = scheme.start(kernels.shape[1], kernels).expand(kernels.shape[0], -1, -1) @ kernels
    for _ in range(scheme.PASSES):
        wide = image.double()
        basis = _whitened(wide @ wide.mT, image, scheme.LEAST_IN_BASIS)
        image = basis @ kernels
    return _whitened(image @ basis.mT, image, scheme.LEAST_IN_FACTOR)


def _whitened(gram: torch.Tensor, rows: torch.Tensor, least: float) -> torch.Tensor:
    """`lambda^(-1/2) V^T rows` with the eigenvalues lambda and eigenvectors V of `gram`.

    Rows of the result are zero if their eigenvalue is not above `least` times the largest one.
    """
    gram = gram.double()
    sound = gram.isfinite().all(dim=2).all(dim=1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(sound, (gram + gram.mT) / 2, 0.0))
    keep = (values > least * values[:, -1:]) & (values > 0)
    weights = torch.where(keep, values.clamp(min=1e-300).rsqrt(), 0.0)[:, :, None] * vectors.mT
    whitened: torch.Tensor = weights.to(rows) @ rows
    return whitened
