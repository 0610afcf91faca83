"""The timeline of a run: valid events, the rounds it should have, and the figure of a round."""

from __future__ import annotations

import json

import pytest

from mpi_ntkdfl import simulation
from mpi_ntkdfl.analysis import timeline
from mpi_ntkdfl.cli.options import read_config
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.runtime.clock import COORDINATING, PHASES, SPANS
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage import trace
from mpi_ntkdfl.storage.outputs import Outputs

SMALL = ("clients=4", "topology.degree=3", "partition.samples=10", "algorithm.taus=[5]")


def test_a_run_tells_when_each_rank_did_what(tmp_path):
    outputs = Outputs(tmp_path / "run.h5")
    traced = (*SMALL, "output.trace=true")
    for rounds, mode in ((2, "new"), (3, "resume")):
        config = read_config("quickstart", (*traced, f"rounds={rounds}"))
        simulation.run(config, SoloWorld(), outputs, mode)
    events = json.loads(outputs.trace.read_text().rstrip(",\n") + "]")
    assert events[0]["args"]["run"] == trace.run_of(outputs.trace)
    assert {event["args"]["name"] for event in events[1:] if event["ph"] == "M"} == {
        "localhost",
        "rank 0",
    }
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["args"]["round"] for event in spans} == {0, 1, 2, 3}
    ends = [max(e["ts"] for e in spans if e["args"]["round"] == r) for r in range(4)]
    assert ends == sorted(ends)
    assert {event["name"] for event in spans} <= set(SPANS)
    for number in (1, 2, 3):
        evolved = [e for e in spans if e["name"] == "evolve" and e["args"]["round"] == number]
        assert len(evolved) == 4
    assert len([event for event in events if event["ph"] == "b"]) == len(
        [event for event in events if event["ph"] == "e"]
    )
    timeline.write(tmp_path / "round.svg", timeline.read(outputs.trace, 2))
    assert (tmp_path / "round.svg").stat().st_size
    with pytest.raises(InputError, match="holds no round 7"):
        timeline.read(outputs.trace, 7)
    with pytest.raises(InputError, match=r"output\.trace=true"):
        timeline.read(tmp_path / "none.trace.json", 1)


def test_inner_phases_do_not_count_for_outer_ones(tmp_path):
    """Two ranks: one evolves for 3 of 4 s, of which 1 s is an exchange within; the other for 1 s."""
    path, lines = tmp_path / "x.trace.json", []
    for rank, name, begin, length in (
        (0, "evolve", 0, 4),
        (0, "exchange", 1, 1),
        (1, "evolve", 0, 1),
    ):
        event = {"ph": "X", "tid": rank, "name": name, "ts": 1e6 * begin, "dur": 1e6 * length}
        lines.append(json.dumps({**event, "args": {"round": 1}}))
    path.write_text("[\n" + ",\n".join(lines) + ',\n{"ph": "X", "ti')
    shown = timeline.read(path, 1)
    assert shown.seconds == pytest.approx(4)
    assert shown.computation().tolist() == pytest.approx([3, 1])


def test_every_phase_is_coordination_or_something_else_by_name():
    assert set(COORDINATING) < set(PHASES)
    assert len(set(PHASES)) == len(PHASES)
