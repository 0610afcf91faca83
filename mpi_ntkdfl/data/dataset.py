"""Samples of a data set as arrays, how they become inputs of a network, and what makes them sound."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError

Labels = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)
_said: set[str] = set()

# Samples looked at together wherever a whole data set in double precision would be too much memory.
_BLOCK = 4096


@dataclass(frozen=True)
class Scaling:
    """From stored values to a network's inputs: (stored / divisor - mean) / deviation.

    The bits are reproducible if each step is done in the working precision and rounded on its own,
    in this order: round `divisor`, `mean` and `deviation` to the working precision, convert
    `stored`, divide, subtract, divide. Nothing may be fused, and no division may become a
    multiplication by a reciprocal, as GPU libraries do where the divisor is a plain number.

    Attributes:
        divisor: such as 255 for bytes.
        mean: [1] or [d] float64, one for all features or one per feature.
        deviation: [1] or [d] float64, never 0.
    """

    divisor: float
    mean: Reals
    deviation: Reals

    def apply(
        self, stored: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32
    ) -> npt.NDArray[Any]:
        """Inputs [n, d] of type `dtype` from `stored` [n, d]; the reference for the order."""
        inputs = stored.astype(dtype)
        inputs /= inputs.dtype.type(self.divisor)
        inputs -= self.mean.astype(dtype)
        inputs /= self.deviation.astype(dtype)
        return inputs

    def grid(self) -> tuple[float, float] | None:
        """(offset, step) such that inputs are (stored + offset) step; None if features differ."""
        if self.mean.size > 1 or self.deviation.size > 1:
            return None
        step = 1 / (self.divisor * float(self.deviation[0]))
        return -self.divisor * float(self.mean[0]), step


class Samples(NamedTuple):
    """Samples of one part: `inputs` [n, d] as stored, `labels` [n] int64."""

    inputs: npt.NDArray[Any]
    labels: Labels


@dataclass(frozen=True)
class Dataset:
    """Training and test samples.

    Samples are stored flat; `shape` is their own shape, for networks that need it.

    Attributes:
        name: as in the configuration.
        train_inputs: [n, d] as stored: uint8 (pictures) or float32.
        train_labels: [n] int64, in 0..classes-1.
        test_inputs: [n_test, d], of the same type.
        test_labels: [n_test] int64.
        classes: number of classes.
        scaling: how stored values become inputs.
        sites: [n] int64, site of each training sample (a writer, a hospital, a role), counted from 0
            in the order of the sites' sorted names; None where the data set knows no sites.
        test_sites: [n_test] int64, the same for test samples.
        shape: of one sample, such as (1, 28, 28) (channels first) or (30,); its product is d.
    """

    name: str
    train_inputs: npt.NDArray[Any]
    train_labels: Labels
    test_inputs: npt.NDArray[Any]
    test_labels: Labels
    classes: int
    scaling: Scaling
    sites: Labels | None = None
    test_sites: Labels | None = None
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Without a shape, samples are vectors."""
        object.__setattr__(self, "shape", self.shape or self.train_inputs.shape[1:])

    def fingerprint(self) -> str:
        """SHA-256 over all samples and labels, to tell data sets apart."""
        digest = hashlib.sha256()
        for array in (self.train_inputs, self.train_labels, self.test_inputs, self.test_labels):
            digest.update(f"{array.shape} {array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def check(self) -> None:
        """Looks at all samples.

        Raises:
            InputError: if a part has no samples, a value is not finite, a label is no class, or the
                test samples are the training samples.
        """
        where = f"data set {self.name}"
        for part, inputs, labels in (
            ("training", self.train_inputs, self.train_labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            _check_part(where, part, inputs, labels, self.classes)
        if np.array_equal(self.train_inputs, self.test_inputs):
            raise InputError(
                f"{where}: the test samples must be others than the training samples, got the same "
                f"{len(self.test_labels)} samples twice; is the test file a copy of the training file?"
            )
        self._count_training_samples(where)

    def _count_training_samples(self, where: str) -> None:
        """Counts test samples whose inputs occur in training, and says so once per process.

        Python's hash of a sample's bytes has 64 bits: the probability that a test sample of Fashion-MNIST
        has the hash of a training sample with other values is 1e-10.
        """
        train = {hash(row.tobytes()) for row in self.train_inputs}
        count = sum(hash(row.tobytes()) in train for row in self.test_inputs)
        said = f"{where}: {count} of {len(self.test_labels)} test samples occur in training as well"
        if count and said not in _said:
            _said.add(said)
            _log.warning("%s; their accuracy is that of training samples", said)


def _check_part(
    where: str, part: str, inputs: npt.NDArray[Any], labels: Labels, classes: int
) -> None:
    if not len(labels):
        raise InputError(f"{where} must have {part} samples, got none")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(
            f"{where}: labels must be in 0..{classes - 1}, got {labels[wrong[0]]} at {part} "
            f"sample {wrong[0]}; is it the right file?"
        )
    if inputs.dtype.kind != "f":
        return
    for start in range(0, len(labels), _BLOCK):
        finite = np.isfinite(inputs[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{where}: values must be finite, got NaN or infinity in {part} sample "
                f"{start + int(np.argmin(finite))}; get the file again"
            )


def split(inputs: npt.NDArray[Any], labels: Labels) -> tuple[Samples, Samples]:
    """Splits off a fifth of each class for the test, the same for every seed of a run.

    Both parts keep the order of the original set.

    Args:
        inputs: [n, d] of all samples.
        labels: [n] of all samples.

    Returns:
        Training and test samples.
    """
    random = seeds.generator(0, "split")
    in_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        in_test[members[: round(len(members) / 5)]] = True
    return Samples(inputs[~in_test], labels[~in_test]), Samples(inputs[in_test], labels[in_test])


def standardise(inputs: npt.NDArray[Any], divisor: float, per_feature: bool) -> Scaling:
    """Measures mean and deviation of the training inputs, in float64 and in two passes.

    A feature that never changes gets deviation 1, so that its input is 0 and not 0 / 0.

    Args:
        inputs: [n, d] as stored.
        divisor: of the stored values.
        per_feature: one mean and deviation per feature, or one for all.
    """

    def average(of: Callable[[Reals], Reals]) -> Reals:
        total = np.zeros(inputs.shape[1])
        for start in range(0, len(inputs), _BLOCK):
            total += of(inputs[start : start + _BLOCK].astype(np.float64) / divisor).sum(axis=0)
        total /= len(inputs)
        return total if per_feature else total.mean(keepdims=True)

    mean = average(lambda values: values)
    deviation = np.sqrt(average(lambda values: (values - mean) ** 2))
    # Exactly 0 for a constant feature: sums of equal float32 values are exact in float64.
    deviation[deviation == 0] = 1.0
    return Scaling(divisor, mean, deviation)
