"""Where the time of a round goes: the timeline, its figure, and how often ranks wait for each other."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from mpi_ntkdfl import simulation
from mpi_ntkdfl.analysis import timeline
from mpi_ntkdfl.cli.options import read_config
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.runtime.clock import SPANS
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


class Counting(SoloWorld):
    """Counts what all ranks have to take part in."""

    def __init__(self):
        self.calls = Counter()

    def total(self, array):
        self.calls["total"] += 1
        return super().total(array)

    def hand_in(self, array, lengths):
        self.calls["hand_in"] += 1
        return super().hand_in(array, lengths)

    def collect(self, array, group=None):
        self.calls["collect"] += 1
        return super().collect(array, group)

    def largest(self, value):
        self.calls["largest"] += 1
        return super().largest(value)

    def channel(self, neighbours, lasting=True):
        self.calls["lasting channel" if lasting else "channel"] += 1
        return super().channel(neighbours, lasting)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_round_costs_one_gather_and_one_agreement(tmp_path, dynamic):
    """What three further rounds add, without evaluations and checkpoints: each is a few latencies."""
    seldom = ("evaluation.every=100", "output.checkpoint_every=100")
    calls = []
    for rounds in (2, 5):
        told = (*SMALL, *seldom, f"topology.dynamic={str(dynamic).lower()}", f"rounds={rounds}")
        world = Counting()
        config = read_config("quickstart", told)
        simulation.run(config, world, Outputs(tmp_path / f"{rounds}.h5"))
        calls.append(world.calls)
    opened = {"channel": 3} if dynamic else {}
    assert calls[1] - calls[0] == Counter({"total": 3, "hand_in": 3, **opened})
