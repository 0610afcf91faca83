"""Outputs of a network for single samples, and what follows from them for the sites of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mpi_ntkdfl.model.levels import Inputs
from mpi_ntkdfl.model.network import Network

_CHUNK = 1_000
"""Samples of a forward pass; a constant, so that rounding does not depend on anything else."""


@dataclass(frozen=True)
class Sites:
    """Sites of samples.

    Attributes:
        each: the site of each sample, `[sample]`.
        sites: number of sites.
    """

    each: np.ndarray
    sites: int


@dataclass(frozen=True)
class BySample:
    """A network and test samples.

    Attributes:
        network: the network.
        inputs: test inputs, `[sample, *shape]`.
        labels: test labels, `[sample]`.
        sites: sites of the test samples; None if there are none.
    """

    network: Network
    inputs: Inputs
    labels: torch.Tensor
    sites: Sites | None

    def drawn(self, count: int, rng: np.random.Generator) -> BySample:
        """So many of the samples, drawn without replacement, in their order; all if there are no more."""
        if count >= len(self.labels):
            return self
        rows = np.sort(rng.choice(len(self.labels), count, replace=False))
        where = torch.from_numpy(rows).to(self.labels.device)
        sites = self.sites and Sites(self.sites.each[rows], self.sites.sites)
        return BySample(self.network, self.inputs[where], self.labels[where], sites)

    def by_class(self) -> np.ndarray:
        """Number of samples of each class, `[class]`."""
        return np.bincount(self.classes, minlength=self.network.classes)

    @torch.inference_mode()
    def outputs(self, params: torch.Tensor) -> np.ndarray:
        """Outputs `[sample, output]` float64 with the parameters `params` `[param]`."""
        outputs_of = self.network.functions(params[None], self.inputs)
        parts = [
            outputs_of(self.inputs[start : start + _CHUNK])[0].double().cpu().numpy()
            for start in range(0, len(self.labels), _CHUNK)
        ]
        return np.concatenate(parts)

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels as an array of numpy, `[sample]`."""
        return self.labels.cpu().numpy()

    def members(self) -> Iterator[np.ndarray]:
        """For each site, which samples belong to it, `[sample]`."""
        assert self.sites is not None
        for site in range(self.sites.sites):
            yield self.sites.each == site

    def accuracies(self, outputs: np.ndarray) -> np.ndarray:
        """Accuracy `[site]` of outputs `[sample, output]`; NaN for a site without samples."""
        right = outputs.argmax(axis=1) == self.classes
        return np.array([right[of].mean() if of.any() else np.nan for of in self.members()])


def standard_error(accuracy: np.ndarray, count: int, of: int) -> np.ndarray:
    """Estimated standard error of `accuracy` `[model]`, measured on `count` of `of` samples, `[model]`.

    The samples are drawn without replacement: W. G. Cochran, Sampling Techniques, 3rd ed., eq. (3.8).
    """
    error: np.ndarray = np.sqrt(accuracy * (1 - accuracy) / (count - 1) * (1 - count / of))
    return error
