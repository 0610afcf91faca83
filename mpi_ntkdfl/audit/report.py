"""The audit of a run: attacks on the messages of a round, compared with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.algorithms.coded import CodedSettings
from mpi_ntkdfl.audit import attack
from mpi_ntkdfl.audit.measure import MOST, Closeness, closeness
from mpi_ntkdfl.audit.overheard import Overheard, overhear
from mpi_ntkdfl.storage.outputs import Outputs

NO_PROOF = (
    "This is no proof of privacy. It says what these attacks reconstruct from one round, with a fixed "
    "budget;\nother attacks, more rounds or more knowledge may give more. A failed attack proves nothing."
)


@dataclass(frozen=True)
class Audit:
    """What the attacks found out about some clients of a run.

    Attributes:
        name: of the run, for tables.
        round: number of the round, from 0.
        message: what travelled, in words.
        codec: of the messages; empty for none.
        attack: name of the attack.
        picture: shape of a sample in the data set.
        span: the largest input of the data set minus the least one.
        found: of each sender.
    """

    name: str
    round: int
    message: str
    codec: str
    attack: str
    picture: tuple[int, ...]
    span: float
    found: tuple[Closeness, ...]

    def psnr(self) -> np.ndarray:
        """PSNR of every sample in dB, NaN where there is no guess."""
        return torch.cat([each.psnr for each in self.found]).numpy()

    def row(self) -> list[str]:
        """The line of the table, without the name."""
        psnr, ssim = self.psnr(), torch.cat([each.ssim for each in self.found]).numpy()
        exact = torch.cat([each.exact for each in self.found])
        labels = float(np.mean([each.labels for each in self.found]))
        histogram = float(np.mean([each.histogram for each in self.found]))
        return [
            self.message,
            self.codec or "-",
            self.attack,
            _decibels(np.median(psnr)),
            _decibels(psnr.min()),
            "-" if np.isnan(ssim).any() else f"{ssim.mean():.3f}",
            f"{int(exact.sum())} of {len(exact)}",
            f"{labels:.0%}",
            f"{histogram:.0%}",
        ]


HEAD = (
    "run",
    "message",
    "codec",
    "attack",
    "PSNR median",
    "PSNR least",
    "SSIM",
    "exact",
    "labels",
    "histogram",
)


def _decibels(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"> {MOST:.0f} dB" if value >= MOST else f"{value:.1f} dB"


def audit(
    outputs: Outputs,
    clients: int,
    samples: int,
    number: int | None = None,
    overrides: tuple[str, ...] = (),
    steps: int = attack.STEPS,
    matching: bool = False,
) -> Audit:
    """Attacks the messages of a round of a run.

    Args:
        outputs: the files of the run.
        clients: how many senders are attacked.
        samples: how many samples of each of them.
        number: of the round; see `overhear`.
        overrides: settings that the messages shall have instead of those of the run.
        steps: of a matching attack.
        matching: whether matching is preferred to stronger attacks.

    Raises:
        InputError: if the files cannot be read; see `overhear`.
    """
    heard = overhear(outputs, clients, samples, number, overrides)
    f, data = heard.federation, heard.problem.dataset
    inputs = data.scaling.apply(data.train_inputs, heard.config.compute.dtype)
    span, found, name = float(inputs.max() - inputs.min()), [], "none"
    for told in heard.told:
        guess = attack.attack(heard, told, steps, matching)
        name, own = guess.attack, f.samples[told.sender]
        places = torch.arange(len(own.labels)) if told.picked is None else told.picked
        truth, labels = own.inputs[places[:samples]], own.labels[places[:samples]]
        found.append(
            closeness(guess, truth, labels, own.labels, f.network.classes, span, data.shape)
        )
    return Audit(
        "; ".join([outputs.record.name, *overrides]),
        heard.round,
        _message(heard),
        _codec(heard),
        name,
        data.shape,
        span,
        tuple(found),
    )


def _message(heard: Overheard) -> str:
    """What travels, in the words of the settings."""
    if not heard.told or not heard.told[0].arrays:
        return "weights"
    settings = heard.config.algorithm
    kind = getattr(settings, "jacobian", None)
    if kind is None:
        return "samples" if "inputs" in heard.told[0].arrays else "factored"
    return f"projected {settings.projection}" if kind == "projected" else str(kind)  # type: ignore[attr-defined]


def _codec(heard: Overheard) -> str:
    """The codecs of the messages, such as `quantize 16`."""
    settings = heard.config.algorithm
    choice = settings.codecs if isinstance(settings, CodedSettings) else None
    if choice is None:
        return ""
    words = []
    for phase, codec in choice.chosen.items():
        values = codec.model_dump(exclude_none=True).values()
        words.append(f"{phase}: {' '.join(map(str, values))}")
    return ", ".join(words)


def text(audits: Sequence[Audit]) -> str:
    """The table of several audits, and what it does not say."""
    rows = [list(HEAD), *([each.name, *each.row()] for each in audits)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    lines = [
        "  ".join(w.ljust(n) for w, n in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    rounds = ", ".join(dict.fromkeys(f"{each.round}" for each in audits))
    return "\n".join(
        [
            f"messages of round {rounds}, counted from 0, computed again from the checkpoint; PSNR and "
            "SSIM against the clients' samples",
            "",
            *lines,
            "",
            NO_PROOF,
        ]
    )
