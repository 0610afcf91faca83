"""Measures of a classifier with two classes; class 1 is the positive one, such as a disease.

All functions take the chances `[sample]` of class 1 and the labels `[sample]`, and return NaN where the
samples do not allow the measure, such as a site without a sample of one class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Chances = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

BINS = 10
"""Bins of equal width into which `calibration_error` sorts the chances."""


def chances(outputs: npt.NDArray[np.float64]) -> Chances:
    """Softmax chance `[sample]` of class 1 from outputs `[sample, 2]`."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(outputs[:, 0] - outputs[:, 1])))


def auc(chance: Chances, labels: Labels) -> float:
    """Area under the ROC curve.

    It is the probability that a random sample of class 1 has a larger chance than a random sample of
    class 0, where ties count half (Mann and Whitney).
    """
    positive, negative = chance[labels == 1], np.sort(chance[labels == 0])
    if not len(positive) or not len(negative) or np.isnan(chance).any():
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(
        negative, positive, "right"
    )
    return float(below.sum() / (2 * len(positive) * len(negative)))


def sensitivity(chance: Chances, labels: Labels) -> float:
    """Share of the samples of class 1 that are classified as class 1."""
    return _rate(chance[labels == 1] > 0.5)


def specificity(chance: Chances, labels: Labels) -> float:
    """Share of the samples of class 0 that are classified as class 0."""
    # With equal outputs the first class wins, as it does in the accuracy.
    return _rate(chance[labels == 0] <= 0.5)


def balanced_accuracy(chance: Chances, labels: Labels) -> float:
    """Mean of sensitivity and specificity."""
    return (sensitivity(chance, labels) + specificity(chance, labels)) / 2


def calibration_error(chance: Chances, labels: Labels) -> float:
    """Expected calibration error, with `BINS` bins of equal width.

    It is the mean over samples of |share of class 1 in the sample's bin - mean chance in the bin|. It is
    too large for few samples: with 10 samples per bin, about .1 even for right chances.
    """
    if not len(chance) or np.isnan(chance).any():
        return float("nan")
    bins = np.minimum((chance * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, labels - chance, minlength=BINS)
    return float(np.abs(gaps).sum() / len(chance))


def _rate(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
