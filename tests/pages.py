"""The site's pages as programs: fenced blocks, the commands in them, and who may run what."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "jobs" / "README.md"]
) + sorted((ROOT / "docs").rglob("*.md"))

CANNOT_RUN = {
    r"git |cd |python3 -m venv|\S*pip |source |conda |apptainer |rm ": "changes the machine",
    r"module |sbatch |squeue|srun |scontrol |if |cat doctor|.* --submit$": "needs Slurm: tests/slurm",
    r"\.venv/bin/|\S*sphinx-build ": "needs the environment of a clone",
    r".* --follow": "waits for a run that goes on",
    r"python -c": "looks at an installed wheel; tests/test_install.py builds one",
}
"""Commands that no test can run, by how they begin, with the reason."""

NOT_HERE = {
    "README.md": ".ci/run runs its first two commands; the others stand on the pages of the site",
    "CONTRIBUTING.md": "tests/test_contributing.py runs its examples",
    "docs/analysis.md": "needs records that it does not make; tests/test_compare.py and test_plots.py",
    "docs/cluster.md": "needs a cluster",
    "docs/performance.md": "benchmarks that take minutes to hours",
    "docs/plugins.md": "the lines show where --plugin stands; the tutorials run such commands",
    "docs/reliability.md": "needs launches that are killed; tests/test_kills.py has them",
    "docs/results.md": "takes a quarter of an hour per run",
    "docs/scaling.md": "starts many runs; tests/test_scaling.py has small ones",
    "docs/studies.md": "takes minutes; tests/test_studies.py has small ones",
}
"""Pages whose commands are only parsed, with the reason. All other pages run from top to bottom."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name in the first line, `# NAME`, of a block that a reader saves as a file."""
        name = re.match(r"# ([\w-]+\.(?:py|yaml))$", self.text.partition("\n")[0])
        return name[1] if name else None


def name(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in fences]


def commands(block: Block) -> list[str]:
    """The commands of a block of shell, with continued lines joined and loops written out."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    loop = re.compile(r"^for (\w+) in (.*); do\n(.*?)^done\n", re.MULTILINE | re.DOTALL)
    while found := loop.search(text):
        turns = [found[3].replace(f"${found[1]}", value) for value in found[2].split()]
        text = text[: found.start()] + "".join(turns) + text[found.end() :]
    lines = (line.strip() for line in re.split(r"\n| && ", text))
    return [line for line in lines if line and not line.startswith("#")]


def cannot_run(command: str) -> bool:
    """Whether the command stands in the list of those that no test can run."""
    return any(re.match(pattern, command.partition("  #")[0].strip()) for pattern in CANNOT_RUN)


def words_of_the_program(command: str) -> list[str] | None:
    """The words behind `python -m mpi_ntkdfl`, without a launcher before it; None for other commands."""
    words = shlex.split(command, comments=True)
    if "mpi_ntkdfl" not in words[:8] or words[words.index("mpi_ntkdfl") - 1] != "-m":
        return None
    return words[words.index("mpi_ntkdfl") + 1 :]
