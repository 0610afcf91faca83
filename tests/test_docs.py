"""Every command and snippet of the documentation runs, or stands in a list of those that cannot."""

import contextlib
import re
import runpy

import click
import pytest
import yaml

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.cli.main import cli
from mpi_ntkdfl.data.sources import DATASETS
from mpi_ntkdfl.federation.codecs import CODECS
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.model.networks import FACTORIES
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime import plugins
from tests import pages
from tests.conftest import ROOT
from tests.test_cli import words

RUN = [page for page in pages.PAGES if pages.name(page) not in pages.NOT_HERE]
RUN = [page for page in RUN if any(b.language in ("sh", "python") for b in pages.blocks(page))]
QUICK = ("own-data", "records", "same-bits")
SMALLER = {
    "quickstart": ("clients=8", "topology.degree=3", "partition.samples=20", "rounds=1"),
    "clinic.yaml": ("rounds=2",),
    "fashion-mnist-cnn": ("evaluation.clients=false", "model.channels=[4, 4]", "model.hidden=[8]"),
    "convnet.yaml": ("rounds=1", "partition.samples=20"),
    "mine.yaml": ("rounds=1", "clients=6"),
}
"""What a test adds to the commands about a configuration, so that it takes a second."""


def smaller(given):
    """The words of a command, with settings that make the run small."""
    if given[:1] == ["audit"]:
        return [*given, "--clients", "1", "--samples", "1", "--steps", "20"]
    if given[:1] not in (["run"], ["check"]) and given[:2] not in (
        ["study", "run"],
        ["study", "report"],
    ):
        return given
    last = dict.fromkeys(SMALLER.get(given[2 if given[0] == "study" else 1], ()))
    if "partition.kind=site" in given or "rings.py" in given:
        last.pop("partition.samples=20", None)
    return [*given, *(word for each in last for word in ("--set", each))]


def run(command):
    """Runs one command in this process, without a launcher."""
    code = int(says[1]) if (says := re.search(r"# exit code (\d+)", command)) else 0
    given = pages.words_of_the_program(command)
    if given is not None:
        with fresh():
            assert words(*smaller(given))[0] == code, command
        return
    program, *rest = command.split()
    assert program == "python" and len(rest) == 1, (
        f"run this or list it in tests/pages.py: {command}"
    )
    run_file(rest[0], "__main__")


def run_file(path, name="snippet"):
    """Runs a file as a process of its own would: nothing is registered before or after."""
    with fresh():
        runpy.run_path(str(path), run_name=name)


@contextlib.contextmanager
def fresh():
    """Tables that hold what the package holds, and forget what a page registers."""
    with pytest.MonkeyPatch.context() as patch:
        for table in (METHODS, METRICS, CODECS, FACTORIES, DATASETS):
            patch.setattr(table, "_entries", dict(table._entries))
        patch.setattr(plugins, "_loaded", {})
        yield


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(each, id=each.stem, marks=() if each.stem in QUICK else pytest.mark.slow)
        for each in RUN
    ],
)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(pages.blocks(page)):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.language == "python":
            snippet = tmp_path / f"snippet-{number}.py"
            snippet.write_text(block.text)
            run_file(snippet)
        elif block.language == "sh":
            for command in pages.commands(block):
                if not pages.cannot_run(command):
                    run(command)


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_the_commands_of_a_page_have_existing_options_and_presets(page):
    for block in pages.blocks(page):
        for command in pages.commands(block) if block.language == "sh" else []:
            given = pages.words_of_the_program(command.replace("[", "").replace("]", ""))
            if not given or "# exit code 2" in command:
                continue
            group = cli
            context = click.Context(cli)
            while isinstance(group, click.Group) and given:
                group = group.get_command(context, given.pop(0))
                assert group is not None, command
            options, _, _ = group.make_parser(click.Context(group)).parse_args(list(given))
            source = options.get("source")
            if source and not source.endswith(".yaml"):
                read_source(source.replace("$method", "dfedavg"))


@pytest.mark.parametrize(
    "page",
    ["docs/plugins.md", "docs/analysis.md", pytest.param("README.md", marks=pytest.mark.slow)],
)
def test_snippets_of_pages_that_only_register_load(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in pages.blocks(ROOT / page):
        if block.language == "python":
            (tmp_path / "snippet.py").write_text(block.text)
            run_file(tmp_path / "snippet.py")


def test_every_reason_belongs_to_a_page():
    assert set(pages.NOT_HERE) <= {pages.name(page) for page in pages.PAGES}


def test_every_method_is_described_in_the_same_form():
    text = (ROOT / "docs" / "methods.md").read_text()
    sections = dict(re.findall(r"^## ([\w-]+)$\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    own = {name for name, each in METHODS.items() if each.__module__.startswith("mpi_ntkdfl.")}
    assert sections.keys() == own, "docs/methods.md has one section per method, with its name"
    for name, section in sections.items():
        parts = re.findall(r"^\*\*(\w+)\.\*\*", section, re.M)
        assert parts == ["Source", "Round", "Settings", "Cost"], name
        fields = METHODS[name].Settings.model_fields
        for key, value in re.findall(r"`(\w+)` ([\d.e-]+\d|true)", section):
            assert fields[key].default == yaml.safe_load(value.replace("e-", ".0e-")), (
                f"{name}.{key}"
            )
