"""Batch scripts for Slurm: fills one of the scripts in `jobs/` for a run, and submits it.

The scripts work by themselves. This module fills in their `#SBATCH` lines, the words of the run, and the
file that they source, so that the result needs no other file.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError

TEMPLATES = ("run_cpu", "run_gpu")
"""The scripts that start one run."""

_SOURCED = re.compile(r'^\. .*/launch\.sh"?$', re.MULTILINE)
_DIRECTIVE = re.compile(r"^#+SBATCH\s+--([a-z-]+)(?:[=\s]\s*(.*))?$")


@dataclass(frozen=True)
class Request:
    """One run on a cluster.

    Attributes:
        name: name of the job.
        words: the words of the run's command: source, `--set`, `-o`.
        nodes: number of nodes.
        ranks: number of MPI ranks on all nodes together.
        threads: cores per rank.
        gpus: GPUs per node.
        time: wall-clock limit of one start, `H:MM:SS` or `D-HH:MM:SS`.
        account: the account that pays, or None for the user's default.
        partition: the cluster's partition to run in, or None for its default.
    """

    name: str
    words: tuple[str, ...]
    nodes: int
    ranks: int
    threads: int
    gpus: int
    time: str
    account: str | None
    partition: str | None


def script(template: str, request: Request) -> str:
    """The batch script of a run.

    Args:
        template: `run_cpu`, `run_gpu`, or the path of the user's own script, which passes its words on.
        request: what to fill in.

    Raises:
        InputError: if there is no such template, or the request does not fit.
    """
    if template == "run_gpu" and not request.gpus:
        raise InputError("--template run_gpu needs --gpus, the number of GPUs a node")
    header, commands = _split(_read(template), template)
    wanted = _directives(request)
    _require_time(request.time, header)
    kept = [line for line in header if not _replaced(line, wanted)]
    first = next((i for i, line in enumerate(kept) if _DIRECTIVE.match(line)), len(kept))
    kept[first:first] = [f"#SBATCH --{key}={value}" for key, value in wanted.items()]
    filled = [
        *("", "# Filled in by `python -m mpi_ntkdfl submit`."),
        f"set -- {shlex.join(request.words)}",
        f"PYTHON=${{PYTHON:-{shlex.quote(sys.executable)}}}",
    ]
    # A function, because the text to insert holds backslashes.
    shared = _SOURCED.sub(lambda _: _shipped("launch.sh").rstrip(), "\n".join(commands))
    return "\n".join([*kept, *filled, "", shared.strip("\n"), ""])


def sbatch(text: str) -> str:
    """Submits a script from the working folder and returns the job's number.

    Raises:
        InputError: if Slurm is not there or refuses.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise InputError(
            f"no sbatch here ({error.strerror}); run this on a login node, or --print the script "
            "into a file and submit that"
        ) from error
    if done.returncode != 0:
        raise InputError(f"sbatch refused the job: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]


def _shipped(name: str) -> str:
    return resources.files("mpi_ntkdfl").joinpath("jobs", name).read_text()


def _read(template: str) -> str:
    if template in TEMPLATES:
        return _shipped(f"{template}.sbatch")
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--template: {template!r} is neither one of {', '.join(TEMPLATES)} nor a readable "
            f"script: {reason}"
        ) from error


def _split(text: str, template: str) -> tuple[list[str], list[str]]:
    """The header (all before the first command, where sbatch stops reading options) and the rest."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise InputError(f"--template: {template} must begin with #!, like #!/usr/bin/env bash")
    end = next((i for i, s in enumerate(lines) if s.strip() and s[0] != "#"), len(lines))
    return lines[:end], lines[end:]


def _directives(request: Request) -> dict[str, str]:
    """Options of sbatch by name.

    Raises:
        InputError: for ranks that do not divide evenly among nodes, or names that no cluster has.
    """
    if request.ranks % request.nodes:
        raise InputError(
            f"--ranks must be a multiple of --nodes, got {request.ranks} ranks on {request.nodes} "
            "nodes"
        )
    options = {
        "job-name": re.sub(r"[^\w.-]", "_", request.name, flags=re.ASCII),
        "nodes": str(request.nodes),
        "ntasks": str(request.ranks),
        "ntasks-per-node": str(request.ranks // request.nodes),
        "cpus-per-task": str(request.threads),
        "time": request.time,
    }
    if request.gpus:
        options["gpus-per-node"] = str(request.gpus)
    for key, value in (("account", request.account), ("partition", request.partition)):
        if value is not None:
            if not re.fullmatch(r"[\w.,+@:-]+", value, re.ASCII):
                raise InputError(f"--{key} must be a name, got {value!r}")
            options[key] = value
    return options


def _replaced(line: str, wanted: dict[str, str]) -> bool:
    match = _DIRECTIVE.match(line)
    # Only the request gives numbers of GPUs: those of a template would stay if the request has none.
    return match is not None and (match[1] in wanted or match[1] == "gpus-per-node")


def _require_time(time: str, header: list[str]) -> None:
    """Refuses what is not a time, or is not longer than the warning that the template asks of Slurm."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", time, re.ASCII)
    if not match:
        raise InputError(f"--time must be H:MM:SS or D-HH:MM:SS, got {time!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    warnings = [re.search(r"--signal=\S*@(\d+)", s) for s in header if s.startswith("#SBATCH")]
    lead = max((int(match[1]) for match in warnings if match), default=0)
    if total <= lead:
        raise InputError(
            f"--time must be longer than the {lead} s before its end at which the script's --signal "
            f"stops the run, got {time}"
        )
