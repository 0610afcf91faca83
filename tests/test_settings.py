"""What a setting affects is declared once, written down in docs/design.md, and acted on everywhere."""

import re

import numpy as np
import pytest
from pydantic import BaseModel

from mpi_ntkdfl import config, presets
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import scaling, traces
from mpi_ntkdfl.config import kinds
from mpi_ntkdfl.data.registered import RegisteredSettings
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.settings import affects
from mpi_ntkdfl.storage import resume, schema
from mpi_ntkdfl.studies import grid
from tests.conftest import ROOT

TABLE = re.findall(
    r"^\| (\w+) \| (`.*?`) \| (.*) \|$",
    (ROOT / "docs" / "design.md").read_text().partition("## What decides a result")[2],
    re.MULTILINE,
)


def all_settings():
    """Every setting that a configuration can have, by dotted key."""
    keys = {name for name in config.Config.model_fields if name not in ("algorithm", "dataset")}
    for section in config.Config.model_fields:
        classes = [*kinds.classes(section)]
        if section == "algorithm":
            classes = [method.Settings for method in METHODS.values()]
        if section == "dataset":
            classes.append(RegisteredSettings)
        names = {name for each in classes for name in each.model_fields}
        if names:
            keys.discard(section)
        keys |= {f"{section}.{name}" for name in names}
    return sorted(keys)


def row(key):
    """The row of the table that names the setting, or the one that names its whole section."""
    for name in (key, f"{key.partition('.')[0]}.*"):
        rows = [each for each in TABLE if f"`{name}`" in each[1].split()]
        assert len(rows) < 2, f"{name} stands in two rows"
        if rows:
            return rows[0]
    raise AssertionError(f'{key} stands in no row of "What decides a result" in docs/design.md')


@pytest.mark.parametrize("key", all_settings())
def test_every_setting_does_what_the_table_says(key):
    declared, _, cells = row(key)
    refused, counts, grouped, fair, family = cells.split(" | ")
    assert config.effect(key) == declared
    assert resume.may_change(key) == (refused != "refused")
    assert (config.effect(key) == "rounding") == (refused == "warning")
    assert grid.counts(key) == (counts == "counts")
    assert traces.apart(key) == (grouped == "apart")
    assert traces.must_agree(key) == (fair == "must agree")
    assert scaling.same_family(key) == (family == "together")


FILES = {
    cells[0]: cells[2:]
    for line in (ROOT / "docs" / "design.md").read_text().splitlines()
    if len(cells := line.strip("| ").replace("`", "").split(" | ")) == 7
}


def test_every_kind_of_file_has_a_row():
    assert {*schema.FILES, "sources", "plugins"} <= set(FILES)


@pytest.mark.parametrize("kind", list(schema.FILES))
def test_every_kind_of_file_does_what_the_table_says(kind, tmp_path):
    """The files of two runs are equal in all but the content of one kind."""
    resumed, study, compared, scaled, _ = FILES[kind]
    shares = np.array([0, 1, 2]), np.array([0, 1])
    edges = np.array([[0, 1]])
    contents = dict.fromkeys(schema.FILES, "a" * 64)
    begun = resume.Start(None, "", shares, contents, edges, {})
    begun.compare(shares, contents, edges)
    other = {"partition": (np.array([0, 1, 2]), np.array([1, 0]))}.get(kind, shares)
    with pytest.raises(InputError, match="cannot go on"):
        begun.compare(other, contents | {kind: "b" * 64}, edges + (kind == "graph"))
    assert resumed.startswith("refused")
    begun.compare(shares, {k: v for k, v in contents.items() if k != "weights"}, edges)
    assert study == "another run"
    assert (kind in traces.PATHS) == (compared == "apart") == (scaled == "apart")


def test_the_table_names_no_setting_that_does_not_exist():
    keys = set(all_settings())
    for _, names, _ in TABLE:
        for name in re.findall(r"`(.*?)`", names):
            assert name in keys or any(k.startswith(name.removesuffix("*")) for k in keys), name


def test_a_methods_declaration_counts_where_its_class_is_at_hand():
    class Settings(config.MethodSettings):
        threads: int = affects("rounding", default=1)

    whole = config.parse(presets.read_source("quickstart"))
    whole = whole.model_copy(update={"algorithm": Settings(name="mine")})
    assert config.effect("algorithm.threads", whole) == "rounding"
    assert resume.may_change("algorithm.threads", whole)
    assert config.effect("algorithm.threads") == "result"
    assert config.effect("no.such", whole) == config.effect("nothing") == "result"


def test_every_number_has_an_upper_bound():
    def unbounded(section):
        for name, field in section.model_fields.items():
            number = re.search(r"\b(int|float)\b", str(field.annotation))
            bounded = re.search(r"\b(Le|Lt|BeforeValidator)\b", repr(field))
            if number and not bounded:
                yield f"{section.__name__}.{name}"

    classes: list[type[BaseModel]] = [config.Config, RegisteredSettings]
    for section in config.Config.model_fields:
        classes += kinds.classes(section)
    classes += [method.Settings for method in METHODS.values()]
    assert [name for each in dict.fromkeys(classes) for name in unbounded(each)] == []
