"""Every example runs by the command in its first lines, and says what it costs and shows."""

from __future__ import annotations

import ast
import os
import runpy
import shlex
import sys

import pytest

from tests import children
from tests.conftest import ROOT, find_mpirun

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICK = ("own_data",)


def head(example) -> str:
    return ast.get_docstring(ast.parse(example.read_text()))


def command(example) -> list[str]:
    """The words behind `Command:`, lines that end in a backslash joined."""
    text = head(example).split("Command:")[1].split("Cost:")[0].replace("\\\n", " ")
    words = shlex.split(text.split("(")[0].replace("[RUN.h5]", ""))
    assert words[0] == "python"
    return [sys.executable, *(str(ROOT / w) if w.startswith("examples/") else w for w in words[1:])]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(each, id=each.stem, marks=() if each.stem in QUICK else pytest.mark.slow)
        for each in EXAMPLES
    ],
)
def test_an_example_runs_as_its_head_says(example, tmp_path):
    if "mpirun" in head(example).split("Cost:")[1].split("It shows:")[0] and find_mpirun() is None:
        pytest.skip("needs mpirun")
    if example.stem == "read_a_record":
        pytest.importorskip("pandas")
    given = command(example)[1:]

    def begin() -> None:
        os.chdir(tmp_path)
        os.environ |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}

    def task() -> None:
        begin()
        sys.argv = given
        runpy.run_path(given[0], run_name="__main__")

    if given[:2] == ["-m", "mpi_ntkdfl"]:
        child = children.command(*given[2:], before=begin)
    else:
        child = children.Child(task)
    ended = child.wait()
    assert ended.code == 0, ended
    assert "Warning" not in ended.err, ended.err


def test_the_readme_runs_the_network_of_an_example():
    words = command(ROOT / "examples" / "own_network.py")[1:]
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (line,) = (each for each in text.splitlines() if "--plugin examples/own_network.py" in each)
    given = [
        str(ROOT / each) if each.startswith("examples/") else each for each in shlex.split(line)
    ]
    assert given[1:] == words


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_its_command_cost_and_purpose(example):
    text = example.read_text()
    assert all(f"{word}:" in head(example) for word in ("Command", "Cost", "It shows"))
    assert 20 <= len(text.splitlines()) <= 70
