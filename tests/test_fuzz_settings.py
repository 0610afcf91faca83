"""Configurations drawn from the settings' own schema: two rounds, or refused; no traceback, no hang.

`FUZZ=2000 FUZZ_SEED=1 pytest tests/test_fuzz_settings.py` draws more of them.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from mpi_ntkdfl import assembly, config, simulation
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.absence import attended_round
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.metrics import CLIENT_LOSS
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.storage.outputs import Outputs
from tests.children import Child

pytestmark = pytest.mark.usefixtures("quick_starts")

COUNT = int(os.environ.get("FUZZ", "40"))
LIMIT = 20
"""Seconds that a configuration may take."""

TINY: dict[str, Any] = {
    "clients": 4,
    "rounds": 2,
    "dataset": {"name": "digits"},
    "partition": {"kind": "dirichlet", "samples": 5},
    "topology": {"kind": "regular", "degree": 3},
    "model": {"hidden": [4]},
    "compute": {"device": "cpu"},
}

WORK = {"clients", "taus", "hidden", "epochs", "samples", "steps", "threads", "batch", "per_client"}
"""A run of the largest number that these take is long by right: they are small, or out of bounds."""

TEXTS = {
    "device": "cpu",
    "time_limit": "1h",
    "timeout": "1min",
    "memory_limit": "2GB",
    "dataset": "digits",
}
"""What is sound where a text is wanted."""

FILES = {"root", "path", "weights"}
"""Not drawn: there is nothing there."""


def drawn(schema: dict[str, Any], root: dict[str, Any], key: str, chance: random.Random) -> Any:
    """A value that fits a JSON schema, nearly fits it, or seldom does not."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return drawn(chance.choice(choices), root, key, chance)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chance.choice(
            [*schema.get("enum", []), schema.get("const")][: None if "const" in schema else -1]
        )
    kind = schema.get("type")
    if kind == "object":
        fields = schema.get("properties", {})
        named = [name for name in fields if name not in FILES]
        kept = [n for n in named if n in ("name", "kind") or chance.random() < 0.5]
        return {name: drawn(fields[name], root, name, chance) for name in kept}
    if kind == "array":
        length = chance.choice([0, 1, 1, 2, 3])
        items = [drawn(schema.get("items", {}), root, key, chance) for _ in range(length)]
        return sorted(set(items)) if all(isinstance(each, int | float) for each in items) else items
    if kind in ("integer", "number"):
        return number(schema, kind, key, chance)
    if kind == "boolean":
        return chance.random() < 0.5
    if kind == "null":
        return None
    return TEXTS.get(key, "x") if chance.random() < 0.97 else chance.choice(["", "x", "\u00e9"])


def number(schema: dict[str, Any], kind: str, key: str, chance: random.Random) -> float:
    step = 1 if kind == "integer" else 1e-9
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 2**62) - step)
    wild = chance.random() < 0.03
    outside = [low - 1, high + 1, -(2**63), 2**64, float("nan"), 1e308]
    if wild:
        return chance.choice(outside)
    if kind == "integer":
        small = [low, low + 1, low + 2, min(high, low + 5)]
        edges = [] if key in WORK else [high, high - 1]
        return int(chance.choice([*small, *small, *small, *edges]))
    middle = [chance.uniform(low, min(high, low + 1)), min(high, 10 ** chance.uniform(-9, 2))]
    return float(chance.choice([*middle, *middle, *middle, low, high]))


def candidate(chance: random.Random) -> dict[str, Any]:
    """A tiny configuration of a random method with random settings, some of them changed."""
    schema = Config.model_json_schema()
    name = chance.choice(sorted(METHODS))
    method = METHODS[name].Settings.model_json_schema()
    settings = drawn(method | {"type": "object"}, method, "", chance) | {"name": name}
    wanted = copy.deepcopy(TINY) | {"algorithm": settings}
    for section in chance.sample(sorted(set(schema["properties"]) - {"rounds", "algorithm"}), 3):
        value = drawn(schema["properties"][section], schema, section, chance)
        old = wanted.get(section)
        if isinstance(old, dict) and isinstance(value, dict):
            same = all(value.get(word, old.get(word)) == old.get(word) for word in ("name", "kind"))
            value = {**old, **value} if same else value
        wanted[section] = value
    if "taus" in method["properties"]:
        settings.setdefault("taus", [5])  # the default ones take long at high learning rates
    if isinstance(threads := wanted["compute"].get("threads"), int) and 1 < threads < 100:
        wanted["compute"]["threads"] = 1  # threads that share a core wait for each other
    if chance.random() < 0.9:  # what must fit other settings mostly does
        wanted["clients"] = chance.choice([4, 6, 8])
        if wanted["topology"].get("kind") in ("regular", "small-world"):
            wanted["topology"]["degree"] = 2
        if "clients_per_round" in settings:
            settings["clients_per_round"] = chance.choice([1, 2, 4])
    return wanted


class TooLongError(Exception):
    pass


def ended(wanted: dict[str, Any], folder: Any) -> str:
    """How a run of a configuration ends, in one word.

    Raises:
        Exception: if it does not end as it should.
    """
    outputs = Outputs(folder / "run.h5")
    try:
        settings = config.parse([wanted])
        simulation.run(settings, SoloWorld(), outputs, "overwrite")
    except InputError as error:
        return f"refused: {error}"
    except SimulationError:
        return "failed"
    return "done"


def few(dataset: Any) -> Any:
    """The first samples of a data set: shares of a partition without `samples` are tiny, too."""
    kept = {name: getattr(dataset, name) for name in ("train_inputs", "train_labels", "sites")}
    first = {name: array[:60] for name, array in kept.items() if array is not None}
    return dataclasses.replace(dataset, **first)


def too_long(*_: Any) -> None:
    raise TooLongError


def run_all(candidates: list[dict[str, Any]], folder: Any) -> int:
    """All of them in this process; 1 if one does not end as it should."""
    tally: dict[str, int] = {}
    signal.signal(signal.SIGALRM, too_long)
    load = assembly.sources.load
    assembly.sources.load = lambda settings: few(load(settings))  # type: ignore[assignment]
    for wanted in candidates:
        start = time.monotonic()
        signal.alarm(LIMIT)
        try:
            how = ended(wanted, folder)
        except BaseException as error:
            print(f"{wanted}\n{type(error).__name__}: {error}", flush=True)
            raise
        finally:
            signal.alarm(0)
        if "-v" in os.environ.get("FUZZ_OPTIONS", ""):
            print(how, flush=True)
        how = how.partition(":")[0]
        tally[how] = tally.get(how, 0) + 1
        assert time.monotonic() - start < LIMIT, wanted
    print(tally, flush=True)
    return 0


def test_drawn_configurations_run_or_are_refused(tmp_path):
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    chance = random.Random(seed)
    candidates = [candidate(chance) for _ in range(COUNT)]
    child = Child(lambda: run_all(candidates, tmp_path), limit=60 + LIMIT * COUNT)
    said = child.wait()
    print(said.out)
    assert said.code == 0, (said.out[-3000:], said.err[-3000:])


def choices(method: str) -> dict[str, list[Any]]:
    """The discrete settings of a method and their values."""
    found: dict[str, list[Any]] = {}
    for name, field in METHODS[method].Settings.model_fields.items():
        if field.annotation is bool:
            found[name] = [False, True]
        elif get_origin(field.annotation) is Literal and name != "name":
            found[name] = list(get_args(field.annotation))
    return found


IDLE = {"projected_update": ("jacobian", "projected")}
"""Settings that do nothing unless another one has this value."""


def one_round(wanted: dict[str, Any]) -> None:
    """A round and its evaluation, without files."""
    settings = config.parse([wanted | {"rounds": 1}])
    parts = assembly.assemble(settings, SoloWorld(), assembly.prepare(settings, 1))
    run = simulation.Simulation(settings, parts, Outputs(Path("no.h5")), lambda progress: None)
    with Exchange(
        parts.federation, parts.schedule.graph(0), codings=run.method.codings
    ) as exchange:
        weights = attended_round(run.method, run.weights, 0, exchange).weights
    evaluation = run.evaluate(weights, clients=True, done=1)
    assert np.isfinite(evaluation[CLIENT_LOSS.name]).all(), wanted


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_combination_of_a_methods_discrete_settings(method):
    """The whole product, one tiny round each."""
    discrete = choices(method)
    small = {"taus": [2, 4], "lr": 0.1, "epochs": 1, "batch": 5, "clients_per_round": 2}
    fitting = {k: v for k, v in small.items() if k in METHODS[method].Settings.model_fields}
    product = (
        dict(zip(discrete, each, strict=True)) for each in itertools.product(*discrete.values())
    )
    candidates = [
        TINY | {"algorithm": {"name": method, **fitting, **chosen}}
        for chosen in product
        if all(
            chosen[name] == discrete[name][0] or chosen[other] == value
            for name, (other, value) in IDLE.items()
            if name in chosen
        )
    ]

    def work() -> int:
        for wanted in candidates:
            one_round(wanted)
        return 0

    said = Child(work).wait()
    assert said.code == 0, said.err[-3000:]
