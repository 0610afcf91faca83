"""docs/configuration.md names every key of a configuration, with its right default."""

import re

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
    assert len(entries) == 1, f"{section} {name} stands in {len(entries)} lines"
    return entries[0]


def test_the_complete_configuration_has_the_defaults():
    assert read_yaml(config.parse([]).to_yaml(), "the defaults") == DEFAULTS


@pytest.mark.parametrize(("section", "name"), CLASSES, ids=" ".join)
def test_every_kind_is_described_with_its_keys_and_defaults(section, name):
    entry, fields = described(section, name), CLASSES[section, name].model_fields
    assert entry.keys() == fields.keys()
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
    assert names == set(CLASSES)
