"""Samples of a data set as arrays, their conversion to inputs of a network, and checks of the samples."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError

Labels = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)
_given_warnings: set[str] = set()

# Number of samples that are processed together, if the whole data set in double precision would take
# too much memory.
_BLOCK = 4096


@dataclass(frozen=True)
class Scaling:
    """The conversion of stored values to inputs of a network: (stored / divisor - mean) / deviation.

    The bits are reproducible if every step is done in the working precision and rounded separately, in
    this order: round `divisor`, `mean` and `deviation` to the working precision, convert `stored`,
    divide, subtract, divide. Steps must not be fused. A division must not be replaced by a multiplication
    by the reciprocal, as GPU libraries do if the divisor is a plain number.

    Attributes:
        divisor: divisor of the stored values, such as 255 for bytes.
        mean: [1] or [d] float64, one for all features or one per feature.
        deviation: [1] or [d] float64, never 0.
    """

    divisor: float
    mean: Reals
    deviation: Reals

    def apply(
        self, stored: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32
    ) -> npt.NDArray[Any]:
        """Inputs [n, d] of type `dtype` from `stored` [n, d]; its code defines the order of the steps."""
        inputs = stored.astype(dtype)
        inputs /= inputs.dtype.type(self.divisor)
        inputs -= self.mean.astype(dtype)
        inputs /= self.deviation.astype(dtype)
        return inputs

    def grid(self) -> tuple[float, float] | None:
        """(offset, step) such that inputs are (stored + offset) step; None if they differ by feature."""
        if self.mean.size > 1 or self.deviation.size > 1:
            return None
        step = 1 / (self.divisor * float(self.deviation[0]))
        return -self.divisor * float(self.mean[0]), step


class Samples(NamedTuple):
    """Samples of the training or the test part: `inputs` [n, d] as stored, `labels` [n] int64."""

    inputs: npt.NDArray[Any]
    labels: Labels


@dataclass(frozen=True)
class Dataset:
    """Training and test samples.

    Samples are stored flat; `shape` is their original shape, for networks that need it.

    Attributes:
        name: name of the data set in configurations.
        train_inputs: [n, d] as stored: uint8 (pictures) or float32.
        train_labels: [n] int64, in 0..classes-1.
        test_inputs: [n_test, d], of the same type.
        test_labels: [n_test] int64.
        classes: number of classes.
        scaling: how stored values are converted to inputs.
        sites: [n] int64, site of each training sample (a writer, a hospital, a role). Sites are numbered
            from 0 in the order of their sorted names. None for a data set without sites.
        test_sites: [n_test] int64, the same for test samples.
        shape: shape of one sample, such as (1, 28, 28) (channels first) or (30,); its product is d.
        class_names: label of each class, as the user gave it. Empty if the labels are 0..classes-1.
        site_names: name of each site. Empty if sites have numbers only.
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
    class_names: tuple[str, ...] = ()
    site_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Without a shape, samples are vectors; names that only count are none."""
        object.__setattr__(self, "shape", self.shape or self.train_inputs.shape[1:])
        for field in ("class_names", "site_names"):
            if getattr(self, field) == tuple(map(str, range(len(getattr(self, field))))):
                object.__setattr__(self, field, ())

    @property
    def tested_sites(self) -> int:
        """Number of sites; 0 if the training or the test samples have none."""
        if self.sites is None or self.test_sites is None:
            return 0
        return int(self.sites.max(initial=-1)) + 1

    def input_blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Inputs [block, d] of a network for all samples, a block after another."""
        for inputs in (self.train_inputs, self.test_inputs):
            for start in range(0, len(inputs), _BLOCK):
                yield self.scaling.apply(inputs[start : start + _BLOCK])

    def fingerprint(self) -> str:
        """SHA-256 over all samples and labels, to tell data sets apart."""
        digest = hashlib.sha256()
        for array in (self.train_inputs, self.train_labels, self.test_inputs, self.test_labels):
            digest.update(f"{array.shape} {array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def check(self, train_as_test: bool = False) -> None:
        """Checks all samples, and warns once per process if test samples occur in training.

        Args:
            train_as_test: whether the test set may hold only training samples.

        Raises:
            InputError: if a part has no samples, a value is not finite, a label is not a class, or all
                test samples occur in training and `train_as_test` is false.
        """
        where = f"data set {self.name}"
        for part, inputs, labels in (
            ("training", self.train_inputs, self.train_labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            _check_part(where, part, inputs, labels, self.classes)
        seen, total = self._seen_in_training(), len(self.test_labels)
        if seen == total and not train_as_test:
            raise InputError(
                f"{where}: test samples must differ from training samples, but all {total} test samples "
                "occur in training; is the test part a copy or a part of the training part? "
                "dataset.train_as_test=true accepts it, and the test accuracy is then one of training"
            )
        warning = f"{where}: {seen} of {total} test samples occur in training as well"
        if seen and warning not in _given_warnings:
            _given_warnings.add(warning)
            _log.warning(
                "%s; the test accuracy counts them, though they are training samples", warning
            )

    def _seen_in_training(self) -> int:
        """Number of test samples whose inputs are also training inputs; labels are not compared.

        Samples are compared by Python's hash of their bytes, which has 64 bits. The probability that any
        test sample of Fashion-MNIST has the hash of a different training sample is 1e-10.
        """
        train = {hash(row.tobytes()) for row in self.train_inputs}
        return sum(hash(row.tobytes()) in train for row in self.test_inputs)


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
                f"{start + int(np.argmin(finite))}; leave the sample out, or get the file again"
            )


def split(inputs: npt.NDArray[Any], labels: Labels) -> tuple[Samples, Samples]:
    """Splits off a fifth of each class as test samples.

    The split does not depend on the seed of a run. Both parts keep the order of the original set.

    Args:
        inputs: inputs [n, d] of all samples.
        labels: labels [n] of all samples.

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
    """Measures mean and standard deviation of the training inputs, in float64 and in two passes.

    A constant feature gets the deviation 1, so that its input is 0 and not 0 / 0.

    Args:
        inputs: [n, d] as stored.
        divisor: divisor of the stored values.
        per_feature: whether there is one mean and deviation per feature, or one for all features.
    """

    def average(of: Callable[[Reals], Reals]) -> Reals:
        total = np.zeros(inputs.shape[1])
        for start in range(0, len(inputs), _BLOCK):
            total += of(inputs[start : start + _BLOCK].astype(np.float64) / divisor).sum(axis=0)
        total /= len(inputs)
        return total if per_feature else total.mean(keepdims=True)

    mean = average(lambda values: values)
    deviation = np.sqrt(average(lambda values: (values - mean) ** 2))
    # For a constant feature it is exactly 0, because sums of equal float32 values are exact in float64.
    deviation[deviation == 0] = 1.0
    return Scaling(divisor, mean, deviation)
