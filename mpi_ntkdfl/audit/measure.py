"""How close guessed inputs are to the true ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpi_ntkdfl.audit.attack import Guess

MOST = 200.0
"""PSNR of guesses without any error, in dB: about that of float64's rounding."""


@dataclass(frozen=True)
class Closeness:
    """The guesses for one client's samples, beside the truth.

    Attributes:
        truth: the samples, `[sample, *shape]`.
        guesses: the guess for each of them, `[sample, *shape]`; None if there is none.
        psnr: peak signal-to-noise ratio of each guess in dB, `[sample]`, at most `MOST`.
        ssim: mean structural similarity of each guess, `[sample]`; NaN if samples are no pictures.
        exact: whether all entries of a guess are within half a grey level (1/510 of the range).
        labels: share of the samples whose labels are known.
        histogram: 1 minus the total variation between guessed and true shares of the classes.
    """

    truth: torch.Tensor
    guesses: torch.Tensor | None
    psnr: torch.Tensor
    ssim: torch.Tensor
    exact: torch.Tensor
    labels: float
    histogram: float


def closeness(
    guess: Guess,
    truth: torch.Tensor,
    labels: torch.Tensor,
    every_label: torch.Tensor,
    classes: int,
    span: float,
    picture: tuple[int, ...],
) -> Closeness:
    """Compares a guess with the truth. A guess without an order is compared with the closest one.

    Args:
        guess: of an attack.
        truth: the samples that were attacked, `[sample, *shape]`.
        labels: their labels, `[sample]`.
        every_label: labels of all samples of the sender.
        classes: C.
        span: the largest input of the data set minus the least one.
        picture: shape of a sample in the data set.
    """
    known = 0.0 if guess.labels is None else float((guess.labels == labels).double().mean())
    agreed = 1.0 if guess.labels is not None else 0.0
    if guess.histogram is not None:
        shares = torch.bincount(every_label, minlength=classes).double() / len(every_label)
        agreed = 1 - 0.5 * float((guess.histogram - shares).abs().sum())
    nothing = torch.full((len(truth),), torch.nan, dtype=torch.float64)
    if guess.inputs is None:
        return Closeness(truth, None, nothing, nothing, nothing.isfinite(), known, agreed)
    inputs, true = guess.inputs.double(), truth.double()
    if not guess.ordered:
        closest = torch.cdist(true.flatten(1), inputs.flatten(1)).argmin(1)
        inputs = inputs[closest]
    error = (inputs - true).flatten(1)
    psnr = (10 * torch.log10(span**2 / error.square().mean(1))).clamp(max=MOST)
    exact = error.abs().amax(1) <= span / 510
    alike = ssim(inputs, true, span, picture) if len(picture) == 3 else nothing
    return Closeness(truth, inputs, psnr, alike, exact, known, agreed)


def ssim(
    one: torch.Tensor, other: torch.Tensor, span: float, picture: tuple[int, ...]
) -> torch.Tensor:
    """Mean structural similarity of pictures, `[sample]`.

    It is that of Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE Transactions on Image Processing 13, 2004, equation 13, with a Gaussian
    window of 11 pixels, or fewer on smaller pictures, and deviation 1.5.

    Args:
        one: pictures, `[sample, ...]`.
        other: the same, to compare with.
        span: the largest possible value minus the least one.
        picture: shape of a picture, `(channel, row, column)`.
    """
    side = min(11, *(size - 1 + size % 2 for size in picture[1:]))
    across = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(across**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    a, b = (each.double().reshape(-1, 1, *picture[1:]) for each in (one, other))

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, window)

    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    similar = (2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return similar.flatten(1).mean(1).view(len(one), -1).mean(1)
