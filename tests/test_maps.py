"""Heat maps of studies: a metric over two axes, and who is first over links."""

import csv

import numpy as np
import pytest
import yaml

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.studies import definition, execute, grid, maps, report

LINKS = {"latency": ["1ms", "50ms", "2s"], "rate": ["1Mbit/s", "1Gbit/s"]}
STUDY = """
title: Maps
about: Nothing.
base: quickstart
settings:
  rounds: 2
  clients: 4
  partition: {kind: dirichlet, alpha: 0.1, samples: 10}
  topology: {kind: ring}
  algorithm: {name: dfedavg, epochs: 1}
  environment: {links: {latency: 50ms, up: 1Mbit/s, down: 1Mbit/s}, devices: {speed: 20MFLOP/s}}
scales:
  small: {seeds: 1, targets: [0.25]}
axes:
  - name: method
    variants:
      - {label: DFedAvg}
      - {label: NTK-DFL, settings: {algorithm: {name: ntk-dfl, taus: [5, 10]}}}
  - name: alpha
    variants:
      - {label: alpha 0.1, settings: {partition: {alpha: 0.1}}}
      - {label: alpha 1, value: 1, settings: {partition: {alpha: 1.0}}}
figures:
  - {name: shares, title: Shares, kind: map, x: [alpha, method], y: [accuracy]}
"""


def study(folder, figures=None, **settings):
    raw = yaml.safe_load(STUDY)
    raw["settings"] |= settings
    if figures is not None:
        raw["figures"], raw["axes"] = figures, raw["axes"][:1]
    path = folder / "maps.yaml"
    path.write_text(yaml.safe_dump(raw))
    made = grid.expand(str(path), "small", folder)
    execute.work(made, made.distinct(), None, lambda line: None)
    return report.make(made)


FASTEST = {"name": "first", "title": "First", "kind": "fastest", "links": LINKS}


def test_a_map_has_a_row_and_a_column_for_every_variant(tmp_path):
    made = study(tmp_path)
    (panel,) = made.drawings[0].panels
    assert panel.x.ticks == ("alpha 0.1", "alpha 1")
    assert [line.label for line in panel.lines] == ["DFedAvg", "NTK-DFL"]
    ends = {cell.label: cell.ends("accuracy")[0] for cell in made.results.cells}
    expected = [[ends[f"{m}, {a}"] for a in panel.x.ticks] for m in ("DFedAvg", "NTK-DFL")]
    assert np.array_equal([line.mean for line in panel.lines], expected)
    assert {path.suffix for path in report.write(made)} == {".csv", ".txt", ".pdf", ".svg"}


def test_the_first_over_links_is_that_of_the_runs(tmp_path):
    forms = [
        {"of": "NTK-DFL", "label": name, "settings": {"algorithm": {"jacobian": name}}}
        for name in ("factored", "inputs")
    ]
    made = study(tmp_path, [{**FASTEST, "messages": forms}], stop_at=0.25)
    drawn = made.drawings[0]
    titles = ["DFedAvg", "NTK-DFL, factored", "NTK-DFL, inputs"]
    assert [panel.title for panel in drawn.panels] == titles
    # At the links of the runs the map has the seconds that the runs recorded.
    (fed, ntk), at = made.results.cells, 1
    for cell, panel in ((fed, drawn.panels[0]), (ntk, drawn.panels[1])):
        rows = cell.finished[0].trace
        recorded = rows.curves["simulated"][rows.first(0.25)]
        assert panel.lines[0].mean[at] == pytest.approx(recorded, abs=1e-9)
    # Two rounds of three legs, or of one.
    slow, quick = (panel.lines[1].mean[2] - panel.lines[1].mean[0] for panel in drawn.panels[1:])
    assert slow == pytest.approx(3 * quick) == pytest.approx(2 * 3 * 1.999)
    with report.write(made)[-1].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 3
    assert "NTK-DFL, inputs:\n       1Mbit/s: " in made.text


def test_leads_change_where_the_seconds_are_equal():
    # 3 s + 1 leg and 1 s + 3 legs are equal at 1 s.
    latencies = np.array([0.0, 0.5, 2.0])
    seconds = np.array([3 + latencies, 1 + 3 * latencies, np.full(3, np.inf)])
    assert maps._leaders(latencies, seconds) == [(0.0, 1), (pytest.approx(1.0), 0)]


def test_links_that_change_who_takes_part_are_refused(tmp_path):
    absent = {"availability": {"kind": "bernoulli", "p": 0.9}}
    with pytest.raises(InputError, match="availability=always"):
        study(tmp_path, [FASTEST], environment=absent)


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({**FASTEST, "links": {**LINKS, "latency": ["50"]}}, "a time with its unit"),
        ({**FASTEST, "links": None}, "links are needed for fastest"),
        (
            {"name": "m", "title": "", "kind": "map", "x": ["method"], "y": ["accuracy"]},
            "two for a map",
        ),
        ({"name": "m", "title": "", "kind": "map", "x": ["method", "alpha"]}, "y is needed"),
        (
            {"name": "m", "title": "", "kind": "map", "x": ["method", "no"], "y": ["loss"]},
            "axis must be",
        ),
    ],
)
def test_refused_figures(tmp_path, figure, message):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(STUDY) | {"figures": [figure]}))
    with pytest.raises(InputError, match=message):
        definition.read(str(path))
