"""Devices: which rank takes which, how messages get to MPI and back, what a GPU would refuse."""

import dataclasses
import json
import re
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.comm.gpu_aware import agreed_staging, require_cuda_aware, says_cuda_aware, try_out
from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.comm.staging import DirectStaging, StagedStaging, staging
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config.sections import RegularTopology
from mpi_ntkdfl.evaluate import Evaluator
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.transfer import Outgoing, Transfer
from mpi_ntkdfl.runtime import device
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.topology.schedule import Schedule
from tests.conftest import MANY, ROOT, environment, make_federation, needs_cuda, random_weights
from tests.pretend_gpu import GPU, FakeCopies, PretendGpu, pretended

# ------------------------------------------------------------------------------------------- devices


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs there seem to be."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize(
    ("seen", "ranks", "wanted", "found"),
    [
        (4, 4, "cuda", "0123"),  # one rank a GPU
        (2, 5, "auto", "01010"),  # more ranks than GPUs share them
        (1, 3, "cuda", "000"),  # each rank sees its own GPU alone: CUDA_VISIBLE_DEVICES by task
        (4, 2, "cuda:3", "33"),
    ],
)
def test_gpus_are_dealt_out_by_local_rank(gpus, seen, ranks, wanted, found):
    gpus(seen)
    chosen = [device.choose(wanted, rank) for rank in range(ranks)]
    assert chosen == [torch.device("cuda", int(index)) for index in found]


def test_cpu_where_asked_for_or_no_gpu_is_seen(gpus):
    gpus(2)
    assert device.choose("cpu", 1) == torch.device("cpu")
    gpus(0)
    assert device.choose("auto", 1) == torch.device("cpu")


@pytest.mark.parametrize(("seen", "wanted"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there_is_bad_input(gpus, seen, wanted):
    gpus(seen)
    with pytest.raises(InputError, match=f"{wanted} needs a CUDA device .* this one sees {seen}"):
        device.choose(wanted, 0)


def test_a_rank_makes_its_gpu_the_current_one_and_leaves_tf32_off(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    torch.set_float32_matmul_precision("high")
    assert torch.backends.cuda.matmul.allow_tf32
    device.use(torch.device("cuda", 2), 1)
    assert current == [torch.device("cuda", 2)]
    assert not torch.backends.cuda.matmul.allow_tf32
    device.use(torch.device("cpu"), 1)
    assert len(current) == 1


# The choice, MPI's name for a kind of memory, and the control group of cores.
NAMING = {"device.py", "gpu_aware.py", "limits.py"}


def test_one_module_names_devices():
    for module in sorted((ROOT / "mpi_ntkdfl").rglob("*.py")):
        if module.name in NAMING:
            continue
        text = module.read_text()
        assert not re.search(r"""["'](cpu|cuda)(:\d+)?["']""", text), module
        assert not re.search(r"\.cuda\(|\.is_cuda\b", text), module
        if module.name != "staging.py":
            assert not re.search(r"torch\.cuda\.(?!get_device_name)|pin_memory", text), module


# ------------------------------------------------------------------------------------------- staging

FORM = MessageFormat(
    {"a": Field("outputs", (3,), torch.float32), "b": Field("labels", (), torch.int32)}
)
SIZES = np.array([5, 2, 7])


class Mirror:
    """A channel whose one neighbour sends back what it gets; it notes what MPI would have read."""

    neighbours = (1,)

    def __init__(self):
        self.seen = b""

    def start(self, send, send_bytes, receive_bytes, room):
        assert len(send) == sum(send_bytes) == sum(receive_bytes) == len(room)
        self.seen = send.numpy().tobytes()
        room.copy_(send)
        return types.SimpleNamespace(poke=lambda: None, wait=lambda: room)

    def close(self):
        pass


def messages_through(way):
    """What MPI gets of three clients' messages, and what is read on the other side."""
    rng, channel, outgoing = np.random.default_rng(0), Mirror(), Outgoing(Ledger(), way)
    sent = []
    for samples in SIZES.tolist():
        arrays = {"a": torch.from_numpy(rng.standard_normal((samples, 3))).float()}
        arrays["b"] = torch.from_numpy(rng.integers(10, size=samples))
        sent.append(arrays)
        outgoing.add(FORM, samples, lambda arrays=arrays: arrays)
    total = [int(FORM.nbytes_each(SIZES).sum())]
    pending = outgoing.start(channel, total, total)
    order = [(0, client) for client in range(len(SIZES))]
    arrived = Transfer(pending, order, FORM, SIZES, None, way, Clock()).finish()
    return channel.seen, sent, [arrived(*pair) for pair in order]


def masked(seen):
    """Without the bytes between arrays, which nobody writes."""
    buffer, start, kept = torch.frombuffer(bytearray(seen), dtype=torch.uint8), 0, []
    for samples in SIZES.tolist():
        kept += [view.clone() for view in FORM.read(buffer, start, samples).values()]
        start += FORM.nbytes(samples)
    return kept


def test_staged_messages_are_the_direct_ones_byte_by_byte():
    """The fake stream copies only when waited for: what MPI is handed too early is garbage."""
    copies = FakeCopies(torch.device("cpu"))
    direct, staged = DirectStaging(), StagedStaging(torch.device("cpu"), copies)
    seen, sent, _ = messages_through(direct)
    again, _, found = messages_through(staged)
    assert all(map(torch.equal, masked(seen), masked(again)))
    for arrays, views in zip(sent, found, strict=True):
        assert torch.equal(views["a"], arrays["a"])
        assert torch.equal(views["b"], arrays["b"].int())
    assert copies.count == 2, "one copy to the host and one back, however many messages"


def test_a_copy_that_nobody_waits_for_would_be_seen():
    way = StagedStaging(torch.device("cpu"), FakeCopies(torch.device("cpu")))
    way.settle = lambda: None
    assert set(messages_through(way)[0]) == {0xEE}


def test_a_cpu_takes_the_direct_way():
    assert isinstance(staging(torch.device("cpu"), False), DirectStaging)
    way = DirectStaging()
    buffer = way.space(128)
    assert way.depart(buffer) is way.arrive(buffer) is buffer


@needs_cuda
def test_staging_on_a_gpu_under_load():
    """Memory that is lent again too early, or read before it is written, shows as other bytes."""
    gpu = torch.device("cuda", torch.cuda.current_device())
    way = staging(gpu, gpu_aware=False)
    load = torch.rand(3000, 3000, device=gpu)
    for turn in range(40):
        for _ in range(5):
            load = load @ load / 1000
        nbytes = 64 * (1 + 7919 * turn % 30_000)
        buffer = way.space(nbytes)
        buffer.copy_(torch.arange(nbytes, device=gpu).add_(turn).remainder_(251))
        expected = (np.arange(nbytes) + turn) % 251
        leaving, room = way.depart(buffer), way.room(nbytes)
        del buffer
        scratch = torch.full((nbytes,), 255, dtype=torch.uint8, device=gpu)
        way.settle()
        assert (leaving.numpy() == expected).all()
        room.copy_(leaving)
        arrived = way.arrive(room)
        del room, scratch
        assert (arrived.clone().cpu().numpy() == expected).all()


# ----------------------------------------------------------------------------------- GPU-aware MPI


def test_only_a_gpu_has_memory_for_mpi():
    with pytest.raises(InputError, match=r"of a CUDA device, but this rank computes on cpu: use"):
        agreed_staging(SoloWorld(), torch.device("cpu"), gpu_aware=True)


@pytest.mark.parametrize(("says", "text"), [(False, "says it is not"), (None, "does not say so")])
def test_the_library_must_say_that_it_takes_cuda_memory(says, text):
    world = SoloWorld()
    world.cuda_aware = says
    with pytest.raises(InputError, match=rf"{text}: use false \(host staging\), or load"):
        require_cuda_aware(world, GPU)
    world.cuda_aware = True
    require_cuda_aware(world, GPU)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [(None, None), ("mpi,system", None), ("mpi,system,cuda:device", True), ("mpi,cuda", True)],
)
def test_what_the_library_says_by_its_info_key(monkeypatch, kinds, says):
    info = types.SimpleNamespace(Get=lambda _: kinds, Free=lambda: None)
    comm = types.SimpleNamespace(Get_info=lambda: info)
    monkeypatch.setattr("ctypes.CDLL", lambda _: types.SimpleNamespace())
    assert says_cuda_aware(types.SimpleNamespace(__file__="", COMM_WORLD=comm)) is says


class TwoRanks(SoloWorld):
    """Rank 0 of two; the other one answers as `reply` says."""

    size = 2

    def __init__(self, reply):
        self._reply = reply

    def channel(self, neighbours):
        def start(send, send_bytes, receive_bytes, room):
            room.copy_(self._reply(send))
            return types.SimpleNamespace(wait=lambda: room)

        return types.SimpleNamespace(start=start, close=lambda: None)


def test_the_trial_finds_changed_bytes():
    numbers = torch.arange(2**20)
    expected = (numbers * 2).remainder(251).to(torch.uint8)  # from rank 1 to rank 0
    try_out(TwoRanks(lambda _: expected), DirectStaging())
    try_out(SoloWorld(), DirectStaging())
    for wrong in (expected.roll(1), expected.index_fill(0, torch.tensor([2**20 - 1]), 255)):
        with pytest.raises(InputError, match="trial message from rank 1 arrived changed"):
            try_out(TwoRanks(lambda _, wrong=wrong: wrong), DirectStaging())


ASK = """
import torch
from mpi_ntkdfl.comm.gpu_aware import require_cuda_aware, try_out
from mpi_ntkdfl.comm.mpi import open_world
from mpi_ntkdfl.comm.staging import DirectStaging
from mpi_ntkdfl.runtime.errors import InputError
world = open_world()
assert world.cuda_aware in (True, False, None)
try:
    world.agree(lambda: require_cuda_aware(world, torch.device("cuda", 0)))
except InputError as error:
    assert not world.cuda_aware
    assert world.rank or world.library in str(error)
else:
    assert world.cuda_aware
try_out(world, DirectStaging())
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_library_is_asked_and_the_trial_passes_between_ranks(mpirun, tmp_path, ranks):
    (tmp_path / "ask.py").write_text(ASK)
    done = mpirun(ranks, tmp_path / "ask.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_gpu_aware_mpi_on_a_cpu_is_bad_input_on_all_ranks(simulate, tmp_path):
    words = ("--set", "compute.gpu_aware_mpi=true", "--set", "compute.device=cpu")
    done = simulate(2, "run", "quickstart", *words, "-o", tmp_path / "run.h5")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: compute.gpu_aware_mpi hands MPI memory of a CUDA device")
    assert not Outputs(tmp_path / "run.h5").existing()


@pytest.mark.slow
def test_doctor_tells_what_mpi_says_of_cuda(simulate):
    (line,) = (line for line in simulate(2, "doctor").stdout.splitlines() if line[:4] == "MPI:")
    assert re.search(r"(says it (takes|does not take)|does not say whether it takes) CUDA", line)


# ---------------------------------------------------------------------- every method on a pretended GPU

GRAPH = Schedule(RegularTopology(kind="regular", degree=3), 6, 0).graph(0)
TAUS = {"taus": (5, 20)}
SETTINGS = {
    "ntk-dfl": TAUS,
    "ntk-fl": {"clients_per_round": 3, **TAUS},
    "average-gd": TAUS,
}
SHAPE = ((6, 5, 3), (5, 3, 8, 4, 6, 7))


def small_federation() -> Federation:
    """Clients that evolve by tensors, as on a GPU."""
    return dataclasses.replace(make_federation(*SHAPE, torch.float32), evolution="tensor")


def moved(federation: Federation, to: torch.device, way) -> Federation:
    """The same clients on another device."""
    samples = {
        client: Samples(own.inputs.to(to), own.labels.to(to))
        for client, own in federation.samples.items()
    }
    return dataclasses.replace(
        federation, device=to, samples=samples, staging=way, evolution="tensor"
    )


def one_round(name: str, federation: Federation) -> torch.Tensor:
    """Weights after a round of a method and its evaluation, on the host."""
    method = METHODS[name](METHODS[name].Settings(**SETTINGS.get(name, {})), federation)
    method.restore({key: array.cpu() for key, array in method.state().items()})
    weights = random_weights(federation).to(federation.device)
    with Exchange(federation, GRAPH) as exchange:
        weights = method.round(weights, 0, exchange).weights
    assert weights.device.type == federation.device.type
    own = federation.samples[0]
    Evaluator(federation, own.inputs, own.labels, method.loss)(weights, True)
    return weights.cpu()


@pytest.mark.parametrize("name", METHODS)
def test_a_round_keeps_its_arrays_on_the_device(name):
    here = one_round(name, small_federation())
    with PretendGpu():
        federation = small_federation()
        there = one_round(name, moved(federation, GPU, StagedStaging(GPU, FakeCopies())))
    assert torch.equal(here, there)


def test_clients_evolve_together_on_the_device():
    """The host waits for a flag a step, and for what comes out; numbers go there once."""

    def federation():
        return dataclasses.replace(small_federation(), batch=6)

    here = one_round("ntk-dfl", federation())
    with PretendGpu() as mode:
        there = one_round("ntk-dfl", moved(federation(), GPU, StagedStaging(GPU, FakeCopies())))
    assert torch.equal(here, there)
    waits = {key: count for key, count in mode.waits.items() if "ntk/" in key}
    assert not [key for key in waits if "path" in key or "/evolve.py" in key]
    flags = sum(count for key, count in waits.items() if key.startswith("__bool__"))
    assert sum(waits.values()) - flags <= 30


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    with PretendGpu() as mode:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert pretended((there + 1)[1:].view(-1)[None].T)
        assert not pretended(there.cpu())
        assert there.device == torch.zeros_like(there).device == GPU
        for bad in (
            lambda: there + here,
            lambda: there.numpy(),
            lambda: torch.stack([there, here]),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                bad()
        float(there.sum())
        assert sum(mode.waits.values()) == 2


PRETEND = f"""
import types
import torch
from mpi_ntkdfl.runtime import device
from mpi_ntkdfl.comm import staging
from mpi_ntkdfl.comm.mpi import MpiWorld
from tests.pretend_gpu import FakeCopies, PretendGpu
device.visible_gpus = lambda: 1
torch.cuda.set_device = lambda _: None
torch.cuda.mem_get_info = lambda _: (0, 0)
torch.cuda.current_stream = lambda _: types.SimpleNamespace(synchronize=lambda: None)
MpiWorld.cuda_aware = True
made = []
staging.CudaCopyStream = lambda device: made.append(FakeCopies(device)) or made[-1]
with PretendGpu():
    exec({MANY!r})
assert sum(copies.count for copies in made)
"""
CASES = {
    "ntk-dfl": (),
    "dispfl": (),
    "dfedavg": ("algorithm.quantize=16",),
    "ntk-fl": ("algorithm.clients_per_round=4",),
    "d-psgd": ("compute.gpu_aware_mpi=true",),
}


TENSORS = ("compute.evolution=tensor", "compute.training=tensor")


@pytest.mark.slow
def test_ranks_with_pretended_gpus_get_the_bits_of_the_cpu(mpirun, tmp_path):
    """Also with MPI taking memory that is said to be a GPU's."""
    records = {}
    for kind, script in (("cpu", MANY), ("cuda", PRETEND)):
        lines = []
        for name, more in CASES.items():
            records[kind, name] = tmp_path / f"{kind}-{name}.h5"
            sets = ("clients=6", "topology.degree=3", "rounds=2", *TENSORS)
            sets = (*sets, f"compute.device={kind}", f"algorithm.name={name}", *more)
            if kind == "cpu":
                sets = tuple(each for each in sets if "gpu_aware" not in each)
            words = [word for each in sets for word in ("--set", each)]
            lines.append(["run", "quickstart", "-q", *words, "-o", str(records[kind, name])])
        done = mpirun(2, "-c", script, json.dumps(lines), limit=200)
        assert done.returncode == 0, done.stderr
    for name in CASES:
        found = []
        for kind in ("cpu", "cuda"):
            record = records[kind, name]
            with h5py.File(record) as file, h5py.File(Outputs(record).checkpoint) as weights:
                assert file.attrs["device"].startswith(kind)
                found.append((weights["params"][:], file["clients/loss"][:]))
        assert all(map(np.array_equal, *found)), name


# --------------------------------------------------------------------------------------- on a real GPU


@needs_cuda
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("name", "batch"), [*((name, None) for name in METHODS), ("ntk-dfl", 4)])
def test_a_round_on_a_gpu_agrees_with_the_cpu(name, batch, dtype, bound):
    """docs/performance.md, "On a GPU"."""
    device.use(torch.device("cuda", 0), 1)
    shape = ((40, 20, 10), (50, 30, 80, 40, 60, 70))
    here = one_round(name, make_federation(*shape, dtype))
    gpu = torch.device("cuda", 0)
    federation = dataclasses.replace(make_federation(*shape, dtype), batch=batch)
    there = one_round(name, moved(federation, gpu, staging(gpu, False)))
    assert (here - there).norm() <= bound * here.norm()


@needs_cuda
@pytest.mark.slow
def test_ranks_that_share_a_gpu_agree_with_the_cpu(simulate, tmp_path):
    found = []
    for kind in ("cpu", "cuda:0"):
        record = tmp_path / f"{kind[:4]}.h5"
        sets = ("rounds=1", f"compute.device={kind}")
        words = [word for each in sets for word in ("--set", each)]
        done = simulate(2, "run", "quickstart", *words, "-o", record, "-q")
        assert done.returncode == 0, done.stderr
        with h5py.File(Outputs(record).checkpoint) as file:
            found.append(file["params"][:])
    assert np.linalg.norm(found[0] - found[1]) <= 1e-4 * np.linalg.norm(found[0])


# ------------------------------------------------------------------------------------ the benchmark


PIECES = {
    "tests": "CUDA tests: ",
    "round": "\n| all |",
    "experiment": "\n| 1 | 2 |",
    "shared": "\n| 4 | 2 |",
    "scaling": "\nstrong: ntk-dfl, digits, 8 clients\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_the_benchmark_runs_on_a_cpu(tmp_path, piece):
    words = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--small"]
    others = [each for each in PIECES if each != piece]
    done = subprocess.run(
        [*words, "-o", tmp_path / "table.md", "--skip", *others],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "table.md").read_text()
    assert text.strip() == done.stdout.strip()
    assert "Tflop/s, copies" in text
    assert {each for each, told in PIECES.items() if told in text} == {piece}
