"""docs/configuration.md names every key of a configuration, with its right default."""

import re
import runpy

import pytest
import yaml

from mpi_ntkdfl import config
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.config import kinds
from mpi_ntkdfl.data.registered import RegisteredSettings
from mpi_ntkdfl.data.sources import DATASETS
from mpi_ntkdfl.federation.codecs import CODECS
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "configuration.md").read_text()
DEFAULTS, KINDS = (
    yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)
)


def settings_classes():
    """Every class of settings with a kind or a name, by section and that kind or name."""
    classes = {("dataset", name): source.Settings for name, source in DATASETS.items()}
    classes["dataset", "MINE"] = RegisteredSettings
    classes |= {("algorithm", name): method.Settings for name, method in METHODS.items()}
    classes |= {("codec", name): codec.Settings for name, codec in CODECS.items()}
    for section in ("partition", "topology", "model"):
        for each in kinds.classes(section):
            tag = each.model_fields.get("kind") or each.model_fields["name"]
            if name := re.search(r"Literal\['(.*?)'\]", str(tag.annotation)):
                classes[section, name[1]] = each
    return classes


CLASSES = settings_classes()


def described(section, name):
    """What the page says of a section of that kind or name."""
    entries = [e for e in KINDS[section] if name in (e.get("kind"), e.get("name"))]
    assert len(entries) == 1, (
        f"docs/configuration.md must have one line `- {{name: {name}, ...}}` below `{section}:`, with "
        f"all keys and their defaults; it has {len(entries)}"
    )
    return entries[0]


def test_the_complete_configuration_has_the_defaults():
    complete = read_yaml(config.parse([]).to_yaml(), "the defaults")
    assert complete | dict.fromkeys(config._ABSENT) == DEFAULTS


@pytest.mark.parametrize(("section", "name"), CLASSES, ids=" ".join)
def test_every_kind_is_described_with_its_keys_and_defaults(section, name):
    entry, fields = described(section, name), CLASSES[section, name].model_fields
    assert entry.keys() == fields.keys(), f"docs/configuration.md, below `{section}:`, {name}"
    for key, field in fields.items():
        if key in ("kind", "name"):
            continue
        if field.is_required():
            assert entry[key].isupper(), f"{section}.{key} must be given"
        else:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert entry[key] == default, f"{section}.{key}"


def test_the_page_describes_no_kind_that_does_not_exist():
    names = {(section, e.get("kind", e.get("name"))) for section in KINDS for e in KINDS[section]}
    assert names <= set(CLASSES), "docs/configuration.md describes what does not exist"


REFERENCE = runpy.run_path(str(ROOT / "docs" / "extensions" / "setting_texts.py"))
EVERY_CLASS = {
    f"{section} {name}".strip(): settings
    for section, classes in REFERENCE["settings_classes"]().items()
    for name, settings in classes.items()
}


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_every_setting_has_a_description(name):
    """A text in triple quotes below the field; the site's reference of settings is made of them."""
    settings = EVERY_CLASS[name]
    silent = settings.model_fields.keys() - REFERENCE["descriptions"](settings) - {"name", "kind"}
    assert not silent, f"write a description below these fields of {settings.__name__}: {silent}"


def test_the_reference_of_settings_names_every_section():
    text = "\n".join(REFERENCE["markdown"]())
    assert all(f"## `{section}`" in text for section in ("dataset", "topology", "compute", "codec"))
    assert "`partition.alpha`\n: Concentration" in text
    assert "*number above 0, at most 1e+09; default `0.1`; affects: result*" in text
