"""The map of the study `latency` for the paper's setting, from rounds that were measured before.

    python benchmarks/latency_map.py docs/convergence.csv docs/latency

The table gives the mean rounds to 82.5 % of NTK-DFL and DFedAvg. The seconds of each round on each link
follow from the model of simulated time, with the partition of seed 0. It writes OUT.svg and OUT.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.studies import draw, maps, report, series
from mpi_ntkdfl.studies.definition import read

TARGET = 0.825


def rounds_to_target(table: Path) -> dict[str, int]:
    """Mean rounds to the target by method; methods of which a seed did not reach it are left out."""
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["target"]) == TARGET]
    return {row["method"]: round(float(row["rounds_to_target"])) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="table.csv of the study convergence")
    parser.add_argument("out", type=Path, help="name of the figure and its numbers, without suffix")
    parser.add_argument("--speed", default="20GFLOP/s", help="of the clients' devices")
    given = parser.parse_args()
    definition = read("latency")
    (figure,) = (each for each in definition.figures if each.links)
    races, looks = {}, {}
    for variant in definition.axes[0].variants:
        environment = {"environment": {"devices": {"speed": given.speed}}}
        config = parse([*read_source(definition.base), environment, variant.settings])
        rounds = rounds_to_target(given.table).get(config.algorithm.name)
        if rounds is not None:
            problem = prepare(config, 1)
            races[variant.label] = config.algorithm.name, [maps.Race(problem, rounds)]
            looks[config.algorithm.name] = problem.first.method.look
    panels = maps.race_panels(races, figure, TARGET)
    drawn = series.Drawing(figure, tuple(panels), looks)
    draw.write(given.out.with_suffix(".svg"), drawn)
    report.write_numbers(given.out.with_suffix(".csv"), drawn)
    print("\n".join(maps.order_text(drawn)))


if __name__ == "__main__":
    main()
