"""Measures of a classifier with two classes; class 1 is the positive one, such as a disease.

All functions take the probabilities `[sample]` of class 1 and the labels `[sample]`. They return NaN if
the samples do not allow the measure, for example if a site has no sample of one class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

BINS = 10
"""Bins of equal width into which `calibration_error` sorts the probabilities."""


def probabilities(outputs: npt.NDArray[np.float64]) -> Probabilities:
    """Softmax probability `[sample]` of class 1 from outputs `[sample, 2]`."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(outputs[:, 0] - outputs[:, 1])))


def auc(probability: Probabilities, labels: Labels) -> float:
    """Area under the ROC curve.

    Of all pairs of a sample of class 1 and a sample of class 0, it is the share in which the first has
    the larger probability; ties count half (Mann and Whitney).
    """
    positive, negative = probability[labels == 1], np.sort(probability[labels == 0])
    if not len(positive) or not len(negative) or np.isnan(probability).any():
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(
        negative, positive, "right"
    )
    return float(below.sum() / (2 * len(positive) * len(negative)))


def sensitivity(probability: Probabilities, labels: Labels) -> float:
    """Share of the samples of class 1 that are classified as class 1."""
    return _rate(probability[labels == 1] > 0.5)


def specificity(probability: Probabilities, labels: Labels) -> float:
    """Share of the samples of class 0 that are classified as class 0."""
    # With equal outputs the first class wins, as it does in the accuracy.
    return _rate(probability[labels == 0] <= 0.5)


def balanced_accuracy(probability: Probabilities, labels: Labels) -> float:
    """Mean of sensitivity and specificity."""
    return (sensitivity(probability, labels) + specificity(probability, labels)) / 2


def calibration_error(probability: Probabilities, labels: Labels) -> float:
    """Expected calibration error, with `BINS` bins of equal width.

    It is the mean over samples of |share of class 1 in the sample's bin - mean probability in the bin|.
    It is too large for few samples: with 10 samples per bin, about .1 even for right probabilities.
    """
    if not len(probability) or np.isnan(probability).any():
        return float("nan")
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, labels - probability, minlength=BINS)
    return float(np.abs(gaps).sum() / len(probability))


def _rate(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
