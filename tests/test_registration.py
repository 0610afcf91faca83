"""What a user adds by registration works everywhere, without a change anywhere else in the package.

`register` does what a user's file does. In this process a fixture takes the entries out again, because
other tests iterate over the registries.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import Literal

import h5py
import numpy as np
import pytest
import torch
import yaml
from pydantic import Field

import mpi_ntkdfl as nd
from mpi_ntkdfl.algorithms import METHODS, register_method
from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.algorithms.dfedavg import Dfedavg, DfedavgSettings
from mpi_ntkdfl.algorithms.training import TrainingMethod, TrainingSettings
from mpi_ntkdfl.analysis import drawing, plots, traces
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.data.sources import DATASETS
from mpi_ntkdfl.federation.codecs import CODECS, Codec, CodecSettings, register_codec
from mpi_ntkdfl.metrics import METRICS, Metric
from mpi_ntkdfl.model.networks import FACTORIES
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import LineStyle
from tests.conftest import MANY
from tests.test_cli import answer, complaint
from tests.test_mpi import recorded

# ------------------------------------------------------------------------------- a user's file


class SlowSettings(TrainingSettings):
    """Half of what the neighbourhood has learnt is taken over."""

    name: Literal["slow-average"] = "slow-average"
    lr: float = Field(default=0.1, gt=0)
    batch: int = Field(default=10, ge=1)
    epochs: int = Field(default=1, ge=1)


class SlowAverage(TrainingMethod[SlowSettings]):
    """Trains, averages, and goes half of the way from a slowly moving average (its state)."""

    Settings = SlowSettings
    label = "Slow Average"
    look = LineStyle("#884411", (7, 1), "x")

    def __init__(self, settings, federation):
        super().__init__(settings, federation)
        params = federation.network.layout.size
        self.slow = torch.zeros(len(federation.owned), params, dtype=federation.dtype)

    @classmethod
    def needs(cls, settings, network, dtype):
        return Needs(("weights",), kept=lambda samples: network.layout.size * dtype.itemsize)

    def round(self, weights, number, exchange):
        averages = exchange.average(self.train(weights, number))
        self.slow = 0.5 * (self.slow + averages)
        return RoundResult(0.5 * (self.slow + averages))

    def state(self):
        return {"slow": self.slow}

    def restore(self, state):
        self.slow = state["slow"]


class SomeSettings(CodecSettings):
    """`share` of the entries is sent."""

    share: float = Field(default=0.25, gt=0, le=1)


class SomeEntries(Codec[SomeSettings]):
    """Sends some entries, drawn at random; what was not sent is added to the next message."""

    Settings = SomeSettings

    @property
    def kept(self):
        return max(1, int(self.settings.share * self.params))

    def format(self):
        return {"values": ((self.kept,), self.dtype), "places": ((self.kept,), torch.int32)}

    def encode(self, vector, rng, state):
        wanted = vector + state["unsent"]
        places = torch.from_numpy(rng.permutation(self.params)[: self.kept]).to(vector.device)
        values = wanted[places]
        wanted[places] = 0
        state["unsent"].copy_(wanted)
        return {"values": values, "places": places.to(torch.int32)}

    def decode(self, message):
        whole = message["values"].new_zeros(self.params)
        whole[message["places"].long()] = message["values"]
        return whole

    def state(self):
        return {"unsent": torch.zeros(self.params, dtype=self.dtype)}


def blobs(samples=120, noise=0.5):
    """Three classes of samples `[sample, 2, 3]`."""
    rng = np.random.default_rng(5)
    places = rng.integers(3, size=samples)
    x = (places[:, None, None] + noise * rng.standard_normal((samples, 2, 3))).astype(np.float32)
    y, cut = places, 2 * samples // 3
    return {"x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:], "y_test": y[cut:]}


def gated(shape, classes, width=6):
    """A network with a shared layer: no layer-by-layer rule is right for it."""

    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(shape[0] * shape[1], width)
            self.shared = torch.nn.Linear(width, width)
            self.last = torch.nn.Linear(width, classes)

        def forward(self, x):
            x = torch.tanh(self.first(x.flatten(1)))
            return self.last(self.shared(x) * torch.sigmoid(self.shared(x.square())))

    return Gated()


NORM = Metric(
    name="weight-norm",
    label="norm of the average's weights",
    measure=lambda view: float(torch.linalg.vector_norm(view.params)),
)


def register():
    """What a user's file does when it is loaded."""
    nd.register_method(SlowAverage)
    nd.register_codec("some-entries", SomeEntries)
    nd.register_dataset("blobs", blobs)
    nd.register_network("gated", gated)
    nd.register_metric(NORM)


# ------------------------------------------------------------------------------------- the tests

PROGRAM = "from tests.test_registration import register\nregister()\n" + MANY

SMALL = ("clients=6", "topology.degree=3", "partition.samples=20")
CODED = "algorithm={name: dfedavg, epochs: 1, codec: {weights: {name: some-entries, share: 0.2}}}"
NETWORK = (
    *("clients=6", "topology.degree=3", "dataset={name: blobs, options: {samples: 180}}"),
    *("partition={kind: iid}", "model={name: plugin, network: gated, options: {width: 5}}"),
    "algorithm.taus=[20]",
)
RUNS = {
    "method": (*SMALL, "algorithm.name=slow-average"),
    "codec": (*SMALL, CODED),
    "network": NETWORK,
}
"""A run that needs the method, one that needs the codec, one that needs the network and the data set;
all of them measure the metric."""


def run_words(out, settings, rounds, *options):
    assignments = [word for each in (*settings, f"rounds={rounds}") for word in ("--set", each)]
    return ["run", "quickstart", *assignments, "-q", "-o", str(out), *options]


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Registers for this module only."""
    register()
    yield
    added = {
        "slow-average": METHODS,
        "some-entries": CODECS,
        "blobs": DATASETS,
        "gated": FACTORIES,
        NORM.name: METRICS,
    }
    for name, registry in added.items():
        del registry._entries[name]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Four rounds of each run in one process, without a break."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in RUNS.items():
        answer(*run_words(folder / f"{name}.h5", settings, 4))
    return folder


def contents(record):
    """Everything a run leaves behind but seconds and MPI bytes."""
    found = {}
    for path in (record, record.with_suffix(".ckpt.h5")):
        with h5py.File(path) as file:

            def note(name, item, which=path.suffixes[0]):
                if isinstance(item, h5py.Dataset) and not name.startswith(("time/", "traffic/mpi")):
                    found[which, name] = item[()]

            file.visititems(note)
    return found


def assert_equal(one, other):
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=str(name))


@pytest.mark.parametrize(
    ("name", "state"), [("method", "slow"), ("codec", "unsent"), ("network", None)]
)
def test_resumed_with_the_same_bits(records, tmp_path, name, state):
    path = tmp_path / f"{name}.h5"
    answer(*run_words(path, RUNS[name], 2))
    answer(*run_words(path, RUNS[name], 4, "--resume"))
    assert_equal(path, records / f"{name}.h5")
    if state:
        with h5py.File(path.with_suffix(".ckpt.h5")) as file:
            assert np.abs(file[f"state/{state}"][()]).max() > 0


@pytest.mark.slow
def test_three_ranks_have_the_same_bits(records, mpirun, tmp_path):
    """They resume after two rounds, so that states are shared out as well."""
    lines = []
    for name, settings in RUNS.items():
        lines.append(run_words(tmp_path / f"{name}.h5", settings, 2))
        lines.append(run_words(tmp_path / f"{name}.h5", settings, 4, "--resume"))
    done = mpirun(3, "-c", PROGRAM, json.dumps(lines))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in RUNS:
        assert_equal(tmp_path / f"{name}.h5", records / f"{name}.h5")


def test_check_plans_and_books_what_is_sent(records):
    words = [word for each in RUNS["method"] for word in ("--set", each)]
    said = answer("check", "quickstart", *words, "--no-measure")
    assert "slow-average on digits" in said
    assert "train" in said
    words = [word for each in NETWORK for word in ("--set", each)]
    said = answer("check", "quickstart", *words, "--no-measure")
    assert "ntk-dfl on blobs: 6 clients with 20 to 20 samples" in said
    assert "gated" in said
    with h5py.File(records / "codec.h5") as file:
        params = 64 * 100 + 100 + 100 * 10 + 10
        sent = file["traffic/protocol_bytes"][:].sum(axis=1)
    assert sent.tolist() == [6 * 3 * int(0.2 * params) * (4 + 4)] * 4
    assert prepare(recorded(records / "codec.h5"), 1).plan.traffic[0].sum() == sent[0]


def test_looking_at_runs(records, tmp_path):
    *paths, network = [records / f"{name}.h5" for name in RUNS]
    assert "slow-average on digits" in answer("show", paths[0])
    assert "ntk-dfl on blobs" in answer("show", network)
    table = tmp_path / "a.csv"
    assert "slow-average" in answer("compare", *paths, "--target", "0.1")
    assert "weight-norm" in answer("compare", network, "--csv", table)
    lines = list(csv.DictReader(table.open()))
    last = nd.open_record(network).table()["weight-norm"][-1]
    assert [float(line["final_weight_norm"]) for line in lines][-1] == last > 0
    answer("plot", network, "--x", "rounds", "--y", "weight-norm", "-o", tmp_path / "norm.svg")
    figure = tmp_path / "a.svg"
    answer("plot", *paths, "--x", "rounds", "-o", figure)
    assert SlowAverage.look.color.lower() in figure.read_text().lower()
    groups = traces.read(paths)
    assert [group.method_label for group in groups] == ["Slow Average", "DFedAvg"]
    with drawing.house_style():
        drawn = plots.figure(groups, plots.Request(x=("rounds",)))
    line = drawn.axes[0].lines[0]
    assert (line.get_label(), line.get_marker()) == ("Slow Average", "x")


def test_records_without_label_and_look_get_a_spare_style(records, tmp_path):
    old = tmp_path / "old.h5"
    old.write_bytes((records / "method.h5").read_bytes())
    with h5py.File(old, "r+") as file:
        del file.attrs["method_label"], file.attrs["method_look"], file.attrs["method_central"]
    (group,) = traces.read([old])
    assert (group.method_label, plots.looks_of([group])) == ("slow-average", {})
    answer("plot", old, "--x", "rounds", "-o", tmp_path / "a.svg")
    # A record that tells of the method speaks for those that do not.
    (both,) = traces.read([old, records / "method.h5"])
    assert both.method_label == "Slow Average"
    assert plots.looks_of([both]) == {"slow-average": SlowAverage.look}


DRAWN = ("accuracy", NORM.name)
STUDIED = {
    "dataset": {"name": "blobs"},
    "model": {"name": "plugin", "network": "gated"},
    "partition": {"kind": "iid"},
    "algorithm": {"name": "ntk-dfl", "taus": [20]},
}


def test_a_small_study(tmp_path):
    definition = {
        "title": "A user's method and codec",
        "about": "Nothing.",
        "base": "quickstart",
        "settings": {"clients": 4, "rounds": 2, "topology": {"kind": "ring"}},
        "scales": {"small": {"seeds": 1, "targets": [0.1]}},
        "axes": [
            {
                "name": "method",
                "variants": [
                    {"label": "slow", "settings": {"algorithm": {"name": "slow-average"}}},
                    {"label": "some", "settings": yaml.safe_load(CODED.replace("=", ": ", 1))},
                    {"label": "gated", "settings": STUDIED},
                ],
            }
        ],
        "figures": [
            {
                "name": "f",
                "title": "F",
                "kind": "curves",
                "x": ["rounds"],
                "y": list(DRAWN),
            }
        ],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(definition))
    where = [path, "--scale", "small", "-o", tmp_path / "out"]
    assert "slow-average" in answer("study", "plan", *where, "--no-measure")
    assert "3 done" in answer("study", "run", *where)
    assert "slow-average" in answer("study", "report", *where)
    out = tmp_path / "out" / "mine-small"
    assert SlowAverage.look.color.lower() in (out / "f.svg").read_text().lower()
    rows = list(csv.DictReader((out / "f.csv").open()))
    lines = ("slow", "some", "gated")
    assert {(row["line"], row["y_name"]) for row in rows} == {
        (line, name) for line in lines for name in DRAWN
    }
    assert all(float(row["y"]) > 0 for row in rows if row["y_name"] == NORM.name)
    with (out / "table.csv").open() as file:
        ends = {row["label"]: float(row["final_weight_norm"]) for row in csv.DictReader(file)}
    assert set(ends) == set(lines) and min(ends.values()) > 0


def test_quantize_is_short_for_a_codec(tmp_path):
    short = (*SMALL, "algorithm={name: dfedavg, epochs: 1, quantize: 16}")
    long = "algorithm={name: dfedavg, epochs: 1, codec: {weights: {name: quantize, levels: 16}}}"
    for name, settings in {"short": short, "long": (*SMALL, long)}.items():
        answer(*run_words(tmp_path / f"{name}.h5", settings, 1))
    assert_equal(tmp_path / "short.h5", tmp_path / "long.h5")
    both = "algorithm={name: dfedavg, quantize: 16, codec: {weights: {name: quantize, levels: 8}}}"
    assert "give quantize or codec, got both" in complaint("check", "quickstart", "--set", both)


def test_bad_codecs_in_a_configuration():
    for codec, message in {
        "{weights: {name: quantise, levels: 4}}": "did you mean 'quantize'",
        "{weights: {levels: 4}}": "unknown codec None",
        "{weights: {name: quantize, levels: 1}}": "greater than or equal to 2",
        "{weights: {name: quantize, levels: 4, more: 1}}": "unknown key",
        "{averages: {name: quantize, levels: 4}}": "needs a method that sends averages",
        "{weights: {name: subsample, share: 0.5}}": "needs a codec for weights, got subsample",
        "{weights: {name: float16, gamma: 0.5}}": "set error_feedback: true",
        "{weights: {name: float16, error_feedback: choco, memory: 0.5}}": "memory needs error_feedback",
        "{weights: {name: float16, error_feedback: chocolate}}": "error_feedback",
    }.items():
        setting = f"algorithm={{name: d-psgd, codec: {codec}}}"
        assert message in complaint("check", "quickstart", "--set", setting), codec
    for method, message in {
        "ntk-dfl, codec: {weights: {name: top-k, share: 0.1}}": "sends whole weights",
        "ntk-dfl, codec: {averages: {name: top-k, share: 0.1}}": "needs a codec for averages",
        "ntk-dfl, codec: {averages: {name: float16, error_feedback: true}}": "is for codec.weights",
        "ntk-dfl, codec: {jacobians: {name: some-entries}}": "needs a codec for jacobians",
        "ntk-dfl, jacobian: inputs, codec: {jacobians: {name: float16}}": "or subsample",
        "ntk-dfl, jacobian: dense, codec: {jacobians: {name: top-k, share: 0.1}}": "by itself",
        "ntk-dfl, averaging: none, codec: {weights: {name: float16}}": "method that sends weights",
        "dispfl, codec: {weights: {name: float16, error_feedback: true}}": "remove it",
        "local, codec: {weights: {name: float16}}": "unknown key",
    }.items():
        assert message in complaint("check", "quickstart", "--set", f"algorithm={{name: {method}}}")


def test_a_configuration_names_what_was_chosen_of_a_codec():
    assert DfedavgSettings().model_dump()["codec"] is None
    coded = DfedavgSettings(codec={"weights": {"name": "quantize", "levels": 4}}).model_dump()
    assert coded["codec"] == {"weights": {"name": "quantize", "levels": 4}}
    assert DfedavgSettings(**coded).model_dump() == coded


class Unfinished(Method[MethodSettings]):
    Settings = MethodSettings


def test_incomplete_methods_are_refused_with_what_they_lack():
    with pytest.raises(InputError) as caught:
        register_method(Unfinished)
    for lacking in ("needs", "round", "a name in its Settings", "label"):
        assert lacking in str(caught.value)
    for wrong in (Dfedavg.needs, str, None):
        with pytest.raises(InputError, match="must be a subclass of Method"):
            register_method(wrong)
    with pytest.raises(InputError, match="there is a method 'dfedavg' already"):
        register_method(type("Other", (Dfedavg,), {}))
    register_method(SlowAverage)  # the same again is no other


def test_incomplete_codecs_are_refused_with_what_they_lack():
    half = type("Half", (Codec,), {"format": lambda self: {}})
    with pytest.raises(InputError, match=r"lacks decode, encode, Settings"):
        register_codec("half", half)
    with pytest.raises(InputError, match="must be a subclass of Codec"):
        register_codec("none", Mapping)
    with pytest.raises(InputError, match="there is a codec 'quantize' already"):
        register_codec("quantize", SomeEntries)


@pytest.mark.parametrize(
    "wrong",
    [("blue", (), "o"), ("#000000", (1,), "o"), ("#000000", (), "oo"), ("#000000", (), "o", "x")],
)
def test_looks_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        LineStyle(*wrong)
