"""The picture of an audit: originals above reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.audit.report import Audit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 12
"""Samples in a row at most."""

_SIDE = 0.6
"""Inches of a sample."""


def write(path: Path, audits: Sequence[Audit]) -> None:
    """Draws the samples of each audit in a row, and below them what the attack made of them.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    drawing.save(path, lambda: _figure(audits))


def _figure(audits: Sequence[Audit]) -> Figure:
    from matplotlib.figure import Figure

    shown = [_columns(each) for each in audits]
    across = max(len(truth) for truth, _, _ in shown)
    size = max(across * _SIDE, style.COLUMN), len(audits) * (2 * _SIDE + 0.35)
    drawn = Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(2 * len(audits), across, squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for row, (each, (truth, guesses, psnr)) in enumerate(zip(audits, shown, strict=True)):
        low, high = float(truth.min()), float(truth.max())
        for column, sample in enumerate(truth):
            upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
            upper.imshow(sample.numpy(), cmap="gray", vmin=low, vmax=high)
            if guesses is not None:
                lower.imshow(guesses[column].numpy(), cmap="gray", vmin=low, vmax=high)
                value = float(psnr[column])
                lower.set_title(f"{value:.0f} dB", fontsize=6, pad=2)
        words = f"{each.message}{f', {each.codec}' if each.codec else ''}: {each.attack}"
        axes[2 * row, 0].set_title(words, fontsize=8, loc="left")
    return drawn


def _columns(audit: Audit) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """True and guessed pictures `[sample, row, column]` and the PSNR of some samples of all senders."""
    per_sender = max(COLUMNS // len(audit.found), 1)
    shape = audit.picture[-2:] if len(audit.picture) == 3 else (1, -1)

    def pictures(samples: torch.Tensor) -> torch.Tensor:
        if len(audit.picture) != 3:
            return samples.reshape(len(samples), *shape)
        return samples.reshape(-1, *audit.picture).mean(1)

    few = audit.found[:COLUMNS]
    truth = torch.cat([pictures(each.truth[:per_sender].double()) for each in few])
    guesses = None
    if all(each.guesses is not None for each in few):
        parts = [each.guesses[:per_sender] for each in few if each.guesses is not None]
        guesses = torch.cat([pictures(part) for part in parts])
    return truth, guesses, torch.cat([each.psnr[:per_sender] for each in few])
