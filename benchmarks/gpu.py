"""Measures the paper's experiment on a machine with a GPU, in one command; the output is Markdown.

    python benchmarks/gpu.py [-o TABLE.md] [--device cuda] [--small] [--synthetic] [--skip PART ...]
        [--preset NAME] [--set SECTION.KEY=VALUE ...]

The parts are:

- `tests`: the tests that need a CUDA device.
- `round`: rounds of one process by phase, beside the floor. The floor is operations / peak or bytes /
  bandwidth, whichever takes longer; both speeds are measured here. Neither limits phases that launch many
  small kernels.
- `experiment`: all rounds on one rank.
- `shared`: four ranks on the GPU.
- `scaling`: 1 to 16 ranks on CPUs, as far as there are cores.

`--preset` and `--set` choose another experiment than the paper's. `--small --device cpu` is for trying
the script: digits, two rounds. `--synthetic` generates a data set of Fashion-MNIST's size if that is not
installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.work import Work
from mpi_ntkdfl.assembly import assemble, prepare
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import Config, parse
from mpi_ntkdfl.data.image_sets import FILES
from mpi_ntkdfl.evaluate import Evaluator
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.planning.costs import round_work
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime import device
from mpi_ntkdfl.runtime.clock import PHASES, Clock
from mpi_ntkdfl.runtime.launching import launcher_words

PARTS = ("tests", "round", "experiment", "shared", "scaling")
ROOT = Path(__file__).resolve().parent.parent


class Asked(argparse.Namespace):
    """The command line."""

    device: str
    small: bool
    synthetic: bool
    output: Path | None
    skip: list[str]
    preset: str
    set: list[str]

    @property
    def source(self) -> str:
        """The preset."""
        return "quickstart" if self.small else self.preset

    @property
    def settings(self) -> list[str]:
        """The settings that override it."""
        small = ["clients=8", "topology.degree=3", "algorithm.taus=[100]"] if self.small else []
        return [*small, *self.set]


# -------------------------------------------------------------------------------------- the machine


def finished(where: torch.device) -> None:
    """Returns when the device `where` has finished all its work."""
    if device.on_gpu(where):
        torch.cuda.synchronize(where)


def shortest(task: Callable[[], object], where: torch.device, repetitions: int = 7) -> float:
    """Wall-clock seconds of the fastest repetition, without the first."""
    found = []
    for _ in range(repetitions + 1):
        finished(where)
        start = time.perf_counter()
        task()
        finished(where)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def measured(where: torch.device, small: bool) -> tuple[float, float]:
    """Operations per second of a large float32 product, bytes per second of a large copy."""
    size, nbytes = (512, 2**24) if small else (8192, 2**31)
    a, b = (torch.rand(size, size, device=where) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(nbytes, dtype=torch.uint8, device=where)
    target = torch.ones_like(source)
    return (
        2 * size**3 / shortest(lambda: torch.mm(a, b, out=product), where),
        2 * nbytes / shortest(lambda: target.copy_(source), where),
    )


def described(where: torch.device) -> str:
    """The device by name."""
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    if not device.on_gpu(where):
        return f"CPU, one thread of {cores}"
    seen = torch.cuda.get_device_properties(where)
    return f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, {cores}"


# ------------------------------------------------------------------------------------------ the parts


def tests() -> list[str]:
    """The tests that need a CUDA device; without one they are skipped and say so."""
    files = [
        path for path in (ROOT / "tests").glob("test_*.py") if "@needs_cuda" in path.read_text()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files, "-m", "gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    return [f"CUDA tests: {last}"]


class WaitingClock(Clock):
    """A clock that lets the device finish a phase before it turns to the next."""

    def __init__(self, where: torch.device) -> None:
        self._where = where
        super().__init__()

    def _charge(self) -> None:
        finished(self._where)
        super()._charge()


def rounds(asked: Asked, config: Config, peak: float, bandwidth: float) -> list[str]:
    """A table of seconds by phase: the first round, and the median of those after it."""
    problem = prepare(config, 1)
    work = round_work(problem.first)
    assembly = assemble(config, SoloWorld(), problem)
    clock = WaitingClock(assembly.federation.device)
    federation = replace(assembly.federation, clock=clock)
    method = METHODS[config.algorithm.name](config.algorithm, federation)
    evaluate = Evaluator(federation, assembly.test_inputs, assembly.test_labels, method.loss)
    weights, laps = assembly.weights, []
    for number in range(2 if asked.small else 4):
        clock.lap()
        graph = assembly.schedule.graph(number)
        with Exchange(federation, graph) as exchange, torch.inference_mode():
            weights = method.round(weights, number, exchange).weights
        evaluate(weights, clients=True)
        laps.append(clock.lap())
    header = ["phase", "first round s", "later rounds s", "floor s", "bound by", "times the floor"]
    rows = []
    for place, phase in enumerate(PHASES):
        first, later = laps[0][place], statistics.median(lap[place] for lap in laps[1:])
        if later < 5e-5 and first < 5e-5:
            continue
        least, bound = floor(work.get(phase), peak, bandwidth)
        ratio = f"{later / least:.1f}" if least else ""
        rows.append([phase, f"{first:.4f}", f"{later:.4f}", f"{least:.5f}", bound, ratio])
    totals = [sum(laps[0]), statistics.median(map(sum, laps[1:]))]
    least = sum(floor(each, peak, bandwidth)[0] for each in work.values())
    rows.append(
        ["all", *(f"{t:.4f}" for t in totals), f"{least:.5f}", "", f"{totals[1] / least:.1f}"]
    )
    title = f"A round of {asked.source}, {config.clients} clients, one process:"
    return [title, "", *table(header, rows)]


def floor(work: Work | None, peak: float, bandwidth: float) -> tuple[float, str]:
    """Least seconds that all clients' `work` takes, and what limits it."""
    if work is None:
        return 0.0, ""
    operations, passed = np.broadcast_arrays(work.operations, work.bytes)
    found = max((operations.sum() / peak, "products"), (passed.sum() / bandwidth, "memory"))
    return found if found[0] else (0.0, "")


def launched(config: Config, ranks: int, folder: Path) -> list[str]:
    """Seconds of the whole program on some ranks, and of its rounds."""
    source, record = folder / f"{ranks}.yaml", folder / f"{ranks}.h5"
    source.write_text(config.to_yaml(), encoding="utf-8")
    words = [word.replace("{ranks}", str(ranks)) for word in launcher_words(None)]
    command = [sys.executable, "-m", "mpi_ntkdfl", "run", str(source), "-o", str(record), "-q"]
    start = time.perf_counter()
    done = subprocess.run([*words, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{ranks} ranks: {done.stderr}")
    with h5py.File(record) as file:
        by_rank = file["time/seconds"][:].sum(axis=2).max(axis=1)
        accuracy = file["model/accuracy"][-1]
    later = statistics.median(by_rank[1:]) if len(by_rank) > 1 else by_rank[0]
    return [str(ranks), str(len(by_rank)), f"{seconds:.1f}", f"{later:.3f}", f"{accuracy:.4f}"]


LAUNCHED = ["ranks", "rounds", "whole program s", "later rounds s", "accuracy of the average"]


def scaled(asked: Asked, sets: list[str], folder: Path) -> list[str]:
    """The strong scaling study on CPUs, as `scaling report` prints it."""
    cores = len(os.sched_getaffinity(0))
    ranks = [count for count in (1, 2, 4, 8, 16) if count <= max(cores, 1)]
    program = [sys.executable, "-m", "mpi_ntkdfl", "scaling"]
    words = [w for each in [*sets, "compute.device=cpu"] for w in ("--set", each)]
    how = ["--ranks", ",".join(map(str, ranks)), "--rounds", "2" if asked.small else "4"]
    for command in (
        [*program, "run", asked.source, *words, *how, "-o", str(folder)],
        [*program, "report", *(str(folder / f"strong-{count}.h5") for count in ranks)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
    return ["Ranks on CPUs, one thread each:", "", "```", *done.stdout.rstrip().splitlines(), "```"]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]


# ------------------------------------------------------------------------------------------ data


@contextmanager
def data(asked: Asked) -> Iterator[list[str]]:
    """The settings of the runs; generated data are ten smooth images with noise, in a folder."""
    if not asked.synthetic:
        yield asked.settings
        return
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        means = rng.integers(0, 200, (10, 7, 7)).repeat(4, 1).repeat(4, 2)
        for part, count in (("train", 60_000), ("test", 10_000)):
            labels = rng.integers(10, size=count)
            images = np.clip(means[labels] + rng.integers(-50, 50, (count, 28, 28)), 0, 255)
            write_idx(Path(name) / FILES[f"{part}_labels"].removesuffix(".gz"), labels)
            write_idx(Path(name) / FILES[f"{part}_images"].removesuffix(".gz"), images)
        yield [f"dataset.root={name}"]


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes bytes in MNIST's format."""
    header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + array.astype(np.uint8).tobytes())


# ------------------------------------------------------------------------------------------- all of it


def report(asked: Asked) -> Iterator[list[str]]:
    """Pieces of Markdown, each when it is ready."""
    where = device.choose(asked.device, 0)
    device.use(where, 1)
    peak, bandwidth = measured(where, asked.small)
    yield [
        f"{described(where)}; torch {torch.__version__}; float32 products {peak / 1e12:.2f} Tflop/s, "
        f"copies {bandwidth / 1e9:.0f} GB/s, both measured."
    ]
    if "tests" not in asked.skip:
        yield tests()
    with data(asked) as sets, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = 2 if asked.small else 30
        config = configured(asked, sets, few)
        if "round" not in asked.skip:
            yield rounds(asked, config, peak, bandwidth)
        rows = []
        if "experiment" not in asked.skip:
            rows.append(launched(config, 1, folder))
        if "shared" not in asked.skip:
            rows.append(launched(configured(asked, sets, min(few, 6)), 4, folder))
        if rows:
            yield ["Under mpirun, all ranks on the device:", "", *table(LAUNCHED, rows)]
        if "scaling" not in asked.skip:
            yield scaled(asked, sets, folder / "scaling")


def configured(asked: Asked, sets: list[str], count: int) -> Config:
    """The preset on the device, with `count` rounds."""
    over = read_overrides((*sets, f"compute.device={asked.device}", f"rounds={count}"))
    return parse([*read_source(asked.source), over])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--small", action="store_true", help="digits and few rounds")
    parser.add_argument("--synthetic", action="store_true", help="made-up data of the same size")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], metavar="PART")
    parser.add_argument("--preset", default="paper-fashion-mnist", metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, help="write the Markdown here too")
    asked = parser.parse_args(namespace=Asked())
    if asked.small and asked.synthetic:
        parser.error("--small takes digits: choose one of --small and --synthetic")
    lines: list[str] = []
    for piece in report(asked):
        lines += [*piece, ""]
        print("\n".join(piece), end="\n\n", flush=True)
        if asked.output:
            asked.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
