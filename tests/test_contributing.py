"""The examples of CONTRIBUTING.md are complete: each file loads, and the command below it runs."""

import re
import shlex

import pytest

from mpi_ntkdfl import open_record
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.data.sources import DATASETS
from mpi_ntkdfl.federation.codecs import CODECS
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.model.networks import FACTORIES
from mpi_ntkdfl.runtime import plugins
from tests.conftest import ROOT
from tests.test_cli import answer

TEXT = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add something of your own")[2]
EXAMPLES = re.findall(
    r"^### An? ([\w ]+)$.*?^```python\n(.*?)^```\n+^```sh\n(.*?)^```$", TEXT, re.M | re.S
)
SMALL = ("clients=4", "topology.degree=3", "partition.samples=20", "rounds=1")


def test_there_is_an_example_for_every_table():
    kinds = [kind for kind, _, _ in EXAMPLES]
    assert kinds == ["method", "metric", "codec", "network", "data set"]


@pytest.mark.parametrize(("kind", "file", "command"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_the_example_runs(kind, file, command, tmp_path, monkeypatch):
    for table in (METHODS, METRICS, CODECS, FACTORIES, DATASETS):
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(file)
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:4] == ["python", "-m", "mpi_ntkdfl", "run"]
    small = [s for s in SMALL if kind != "data set" or not s.startswith("partition")]
    sets = [word for each in small for word in ("--set", each)]
    answer(*words[3:], *sets, "-q", "-o", "run.h5")
    record = open_record("run.h5")
    assert list(record.table()["rounds"]) == [0, 1]
    if kind == "metric":
        assert "entropy" in record.table()
