"""Obvious commands: help with examples that can be parsed, suggestions, verdicts, totals."""

import re
import shlex

import click
import numpy as np
import pytest

from mpi_ntkdfl import __main__ as entry
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.cli import doctor, plan
from mpi_ntkdfl.cli.main import cli
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.planning.costs import MOST_TESTING, NOMINAL
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.runtime.errors import InputError
from tests.conftest import ROOT
from tests.test_cli import answer, complaint, words


def commands(group=cli, above=()):
    """Every command with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))


@pytest.mark.parametrize(
    ("path", "command"),
    commands(),
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_every_command_has_help_with_examples_that_can_be_parsed(
    path, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shown = answer(*path, "--help")
    assert "\b" not in shown
    examples = re.findall(r"^ +(?:mpirun -n \d+ )?python -m mpi_ntkdfl (.*)$", shown, re.MULTILINE)
    assert examples
    for example in examples:
        line = shlex.split(example.partition(" > ")[0])
        found, group = cli, cli
        while isinstance(found, click.Group):
            group, name = found, line.pop(0)
            found = group.get_command(click.Context(group), name)
        above = click.Context(cli, help_option_names=["-h", "--help"])
        assert found.make_context(name, line, parent=above)  # parses and checks the words


def test_lists_of_commands_are_whole_sentences():
    assert "beside the measurements." in " ".join(answer("scaling", "--help").split())


@pytest.mark.parametrize(
    ("line", "hint"),
    [("comapre a.h5", "compare"), ("study rnu x", "run"), ("scaling reprot x", "report")],
)
def test_misspelt_commands(line, hint):
    assert f"did you mean {hint!r}?" in complaint(*line.split())


@pytest.mark.parametrize(("network", "said"), [("mlp", False), ("cnn", True)])
def test_the_plan_says_for_which_networks_seconds_are_a_lower_bound(network, said):
    words = ("--set", f"model.name={network}", "--set", "clients=6", "--no-measure")
    assert ("may take ten times as long" in answer("check", "quickstart", *words)) is said


def test_a_misspelt_study():
    assert "did you mean 'convergence'? there are: ahead, aids" in complaint(
        "study", "plan", "convergance"
    )


def test_the_console_command_is_the_same_program(monkeypatch):
    assert 'mpi-ntkdfl = mpi_ntkdfl.__main__:start"' in (ROOT / "setup.py").read_text()
    monkeypatch.setattr("sys.argv", ["/usr/bin/mpi-ntkdfl", "fly"])
    with pytest.raises(SystemExit) as ended:
        entry.start()
    assert ended.value.code == 2


@pytest.mark.parametrize("text", ['{"0": [1, 2]}', "client,index\n0,1\n"])
def test_a_partition_that_is_no_npz_file_is_told_what_one_is(tmp_path, text):
    path = tmp_path / "shares"
    path.write_text(text)
    line = ["check", "--set", "partition.kind=file", "--set", f"partition.path={path}"]
    assert re.search(r"is not an npz file.*offsets \[clients \+ 1\].*numpy.savez", complaint(*line))


def test_check_adds_up_the_whole_run():
    shown = answer("check", "--no-measure", "--set", "rounds=7")
    first, whole = re.findall(r"(?:total|traffic) +([\d.]+) MB protocol", shown)
    assert float(whole) == pytest.approx(7 * float(first), rel=0.01)
    assert re.search(
        r"whole run, 7 rounds.*time +0:0\d, or 0:0\d of core time.*on disk", shown, re.DOTALL
    )
    assert re.search(r"checkpoint +[\d.]+ kB in one file; in parts from 536.9 MB on", shown)
    assert re.search(r"start-up +0 B of samples to other ranks, [\d.]+ kB of test samples", shown)
    four = ("check", "--no-measure", "--ranks", "4", "--set")
    size = float(re.search(r"checkpoint +([\d.]+) kB", shown)[1])
    assert f" in 4 parts of {size / 4:.1f} kB" in answer(*four, "output.checkpoint_part=1000")
    assert "in one file, because" in answer(*four, "output.checkpoint_part=null")


RANK = doctor.Rank((), "cpu", (0, 1), "1", "x86-64-v4")


def test_doctors_verdict():
    good = doctor.verdict(2, ("a", "a"), [RANK] * 2, [])
    assert good == [
        "verdict: runs work here",
        "next: mpirun -n 2 python -m mpi_ntkdfl run quickstart -o first.h5",
    ]
    crowded = doctor.verdict(4, ("a",) * 4, [RANK] * 4, ["mnist"])
    assert crowded[0] == "verdict: runs work here, but a has 2 cores for 4 ranks"
    assert "mnist" in crowded[1]
    assert crowded[2].startswith("next: mpirun -n 2 ")
    assert doctor.verdict(2, ("a",), [RANK], [])[0].startswith("verdict: NOT READY")


def test_doctor_ends_with_the_next_step():
    code, out, _ = words("doctor")
    assert code == 0
    assert out.splitlines()[-1].startswith("next: mpirun -n ")


def test_a_phase_that_does_not_exist():
    with pytest.raises(
        InputError, match="unknown phase of the clock 'traning'; did you mean 'train'"
    ):
        Clock()("traning")
    assert np.isfinite(Clock().lap()).all()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"algorithm": {"name": "ntk-dfl"}}, ""),
        ({"algorithm": {"name": "local"}}, "clients_every=2"),
        ({"algorithm": {"name": "local"}, "evaluation": {"sample": 30}}, ""),
        ({"algorithm": {"name": "d-psgd"}}, "every=5"),
        ({"algorithm": {"name": "d-psgd"}, "evaluation": {"clients_every": 5}}, "every=5"),
        ({"algorithm": {"name": "d-psgd"}, "rounds": 3}, "every=2"),  # not enough, but less
    ],
)
def test_check_advises_to_test_less_often_where_tests_take_much_of_a_round(changes, setting):
    """The setting that it names brings their share of a round below a fifth."""
    settings = parse([*read_source("quickstart"), {"model": {"hidden": [500]}}, changes])
    problem = prepare(settings, 1)
    named, share = problem.rarer_tests(NOMINAL, 2)
    assert named == (f"evaluation.{setting}" if setting else "")
    seconds = problem.round_seconds(NOMINAL, 2)
    line = plan._advice(seconds, named, share)
    assert bool(line) == bool(setting)
    before = seconds["evaluate"] / sum(seconds.values())
    assert (before > MOST_TESTING) == bool(setting)
    assert share < before or not setting
    assert share <= MOST_TESTING or settings.rounds == 3
