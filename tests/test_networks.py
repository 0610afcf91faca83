"""What every network promises, held against plain autograd loops in float64; and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import platform
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.algorithms.ntk_fl import NtkFl, NtkFlSettings
from mpi_ntkdfl.api import run
from mpi_ntkdfl.assembly import prepare, read_weights
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.evaluate import scores
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.operators import jacobian, kernel
from mpi_ntkdfl.model.module.training import ModuleTrainer
from mpi_ntkdfl.model.networks import NETWORKS, build, register_network
from mpi_ntkdfl.model.training import Sgd, SgdRule
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.schedule import participants
from tests import oracle
from tests.conftest import make_federation, random_weights
from tests.modules import Pictures, Tied, perceptron

WIDTHS = (6, 5, 3)
MODULES = {
    "sequential": (lambda: perceptron(*WIDTHS), (6,)),
    "pictures": (lambda: Pictures(4, 3), (1, 4, 4)),
    "tied": (Tied, (4,)),
}
BUILT_IN = {
    "cnn": ("cnn", {"channels": [2, 3], "hidden": [4]}, (1, 4, 5)),
    "resnet": ("resnet", {"width": 2}, (2, 6, 5)),
    "transformer": ("transformer", {"layers": 1, "heads": 2, "width": 4, "patch": 2}, (1, 4, 2)),
    "tokens": ("transformer", {"layers": 1, "heads": 1, "width": 4}, (5,)),
}
NAMES = ["mlp", *MODULES, *BUILT_IN]
SGD = {"plain": Sgd(0.1), "momentum and decay": Sgd(0.05, 0.8, 0.2)}


def make(name):
    """A network, and a module that does the same, for the oracle."""
    if name == "mlp":
        return MLP(WIDTHS), perceptron(*WIDTHS).double()
    if name in BUILT_IN:
        kind, words, shape = BUILT_IN[name]
        network = build(NETWORKS[kind].Settings(**words), shape, 3)
        return network, copy.deepcopy(network._function.module).double()
    factory, shape = MODULES[name]
    return ModuleNetwork(factory, shape, 3, name), factory().double()


def draw(network, samples=7, seed=0):
    """Parameters, inputs and labels."""
    rng = np.random.default_rng(seed)
    params = network.initial(rng) + 0.1 * rng.standard_normal(network.layout.size)
    inputs = rng.standard_normal((samples, *network.shape))
    if "tokens" in network.describe():
        inputs = rng.integers(3, size=inputs.shape).astype(float)
    return (
        *map(torch.from_numpy, (params, inputs)),
        torch.from_numpy(rng.integers(3, size=samples)),
    )


@pytest.fixture(params=NAMES)
def case(request):
    network, module = make(request.param)
    return network, module, *draw(network)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------- what a network promises


def test_outputs_are_those_of_the_module(case):
    network, module, params, inputs, _ = case
    wanted = oracle.module_outputs(module, params, inputs)
    close(network.outputs(params, inputs), wanted)
    other = params + 1
    both = network.functions(torch.stack([params, other]), inputs)(inputs)
    close(both, torch.stack([wanted, oracle.module_outputs(module, other, inputs)]))
    assert (network.shape, network.classes) == (inputs.shape[1:], 3)
    assert network.describe()


def test_jacobian_is_that_of_autograd_entry_by_entry(case):
    network, module, params, inputs, _ = case
    entries = oracle.module_jacobian(module, params, inputs)
    found = network.jacobian(params, inputs)
    close(found.outputs, oracle.module_outputs(module, params, inputs))
    close(found.dense(), entries)
    for start, stop in ((0, 1), (3, 29), (11, 12), (network.layout.size - 2, network.layout.size)):
        close(found.dense(start, stop), entries[:, :, start:stop])
    close(found.trace_gram(), 3 * oracle.kernel(entries))
    residuals = torch.randn(2, len(inputs), 3, dtype=inputs.dtype)
    close(found.transposed_product(residuals), torch.einsum("ncp,tnc->tp", entries, residuals))


@torch.inference_mode()
def test_rounds_compute_in_inference_mode(case):
    network, module, params, inputs, labels = (
        x.clone() if isinstance(x, torch.Tensor) else x for x in case
    )
    with torch.inference_mode(False):
        entries = oracle.module_jacobian(module, params.clone(), inputs.clone())
    close(network.jacobian(params, inputs).trace_gram(), 3 * oracle.kernel(entries))
    network.jacobian(params, inputs).transposed_product(torch.ones(1, len(inputs), 3).double())
    network.loss_gradient(params, inputs, labels, "cross-entropy")


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_gradients_and_descent_are_those_of_autograd(case, loss):
    network, module, params, inputs, labels = case
    shares = torch.arange(1.0, len(labels) + 1, dtype=params.dtype)
    even = torch.full_like(shares, 1 / len(labels))
    for given, counted in ((None, even), (shares, shares)):
        close(
            network.loss_gradient(params, inputs, labels, loss, given),
            oracle.module_gradient(module, params, inputs, labels, counted, loss),
        )
    wanted, path = params, []
    for _ in range(6):
        wanted = wanted - 0.05 * oracle.module_gradient(module, wanted, inputs, labels, even, loss)
        path.append(wanted)
    found = network.descend(params, inputs, labels, 0.05, (2, 6), loss)
    close(found, torch.stack([path[1], path[5]]))


@pytest.mark.parametrize("sgd", SGD.values(), ids=list(SGD))
def test_training_takes_the_steps_of_torch(case, sgd):
    network, module, *_ = case
    draws = [draw(network, samples, seed) for seed, samples in enumerate((5, 3, 6))]
    weights = torch.stack([params for params, *_ in draws])
    data = [(inputs, labels) for _, inputs, labels in draws]

    def orders(place):
        rng = np.random.default_rng(place)
        return np.stack([rng.permutation(len(data[place][1])) for _ in range(3)])

    wanted = torch.stack(
        [
            oracle.module_training(module, params, *each, orders(place), 2, sgd)
            for place, (params, each) in enumerate(zip(weights, data, strict=True))
        ]
    )
    trainer = network.trainer(data, batch=2, epochs=3)
    close(trainer.descend(weights, orders, sgd), wanted)
    close(trainer.follow(weights, orders, lambda _: SgdRule(sgd)), wanted)
    if isinstance(network, ModuleNetwork):  # as on a GPU
        together = ModuleTrainer(network._function, data, 2, 3, places=2)
        close(together.descend(weights, orders, sgd), wanted)


def test_starting_weights_follow_from_the_generator_only(case):
    network, module, *_ = case
    first, again, other = (network.initial(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.float64
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    state = torch.random.get_rng_state()
    network.initial(np.random.default_rng(3))
    assert torch.equal(torch.random.get_rng_state(), state), (
        "the process's own draws stay as they are"
    )
    if isinstance(network, ModuleNetwork):
        trained = [name for name, p in module.named_parameters() if p.requires_grad]
        assert list(network.layout.shapes) == trained


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "transformer"])
@pytest.mark.parametrize("scheme", ["kaiming", "torch"])
def test_starting_weights_have_the_scheme_of_the_settings(name, scheme):
    network = build(NETWORKS[name].Settings(scheme=scheme), (1, 8, 8), 10)
    draws = [network.initial(np.random.default_rng(seed)) for seed in range(8)]
    tensors = network.layout.unflatten(torch.from_numpy(np.stack(draws)))
    biases = {n for n, each in tensors.items() if each.ndim == 2}
    norms = {n for n in biases if "norm" in n}
    layers = tensors.keys() - biases - {"1.positions"}
    for part in layers:
        deviation = float(tensors[part].std()) * tensors[part][0, 0].numel() ** 0.5
        wanted = 2**0.5 if scheme == "kaiming" else 3**-0.5
        assert deviation == pytest.approx(wanted, rel=0.2), part
    assert layers
    for part in biases - norms:
        assert bool(tensors[part].any()) == (scheme == "torch"), part


def test_plans_grow_with_the_samples(case):
    network, *_ = case
    few, many = np.array([3.0]), np.array([30.0])
    work = network.work
    for count in (work.kernel, lambda n: work.update(n, 2), work.descent):
        assert 0 < count(few).operations[0] < count(many).operations[0]
    training = [work.training(n, 2, 3, gradients=1, by_entry=False) for n in (few, many)]
    assert 0 < training[0].operations[0] < training[1].operations[0]
    assert 0 < network.memory(3) < network.memory(30)
    assert work.products >= 6 * 3
    assert work.activations > work.features == np.prod(network.shape)


# ------------------------------------------------------------------------------------- modules of torch


def test_a_sequential_perceptron_has_the_kernel_of_the_handwritten_one():
    module = perceptron(20, 12, 8, 4).double()
    params = nn.utils.parameters_to_vector(module.parameters()).detach()
    inputs = torch.randn(9, 20, dtype=torch.float64)
    wanted = MLP((20, 12, 8, 4)).jacobian(params, inputs).trace_gram() / 4
    before = copy.deepcopy(module.state_dict())
    found = kernel(module, inputs)
    assert (found - wanted).abs().max() < 1e-10 * wanted.abs().max()
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())
    close(jacobian(module, inputs).dense(), MLP((20, 12, 8, 4)).jacobian(params, inputs).dense())


def test_little_memory_and_no_vectorising_change_nothing_but_rounding():
    module, inputs = Pictures(4, 3).double(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    function = FlatModule(module)
    whole = jacobian(module, inputs)
    for limits in (Limits(6 * function.layout.size, 2, True), Limits(1, 1, False)):
        part = ModuleJacobian(function, function.flat(), inputs, 3, limits)
        close(part.trace_gram(), whole.trace_gram())
        close(part.dense(5, 40), whole.dense(5, 40))
        close(part.outputs, whole.outputs)
        residuals = torch.randn(1, 5, 3, dtype=torch.float64)
        close(part.transposed_product(residuals), whole.transposed_product(residuals))
    close(kernel(module, inputs, memory_limit=1), kernel(module, inputs))


GROWTH = """
import ctypes, re, torch
from pathlib import Path
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.model.networks import build

def bytes_of(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
network = build(parse([{"model": {"name": "cnn"}}]).model, (1, 28, 28), 10)
params, inputs = network.own_parameters().float(), torch.randn(SAMPLES, 1, 28, 28)
network.jacobian(params, inputs[:8]).trace_gram()
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = bytes_of("VmRSS")
network.jacobian(params, inputs).trace_gram()
network.jacobian(params, inputs).transposed_product(torch.randn(3, SAMPLES, 10))
print((bytes_of("VmHWM") - before) / (4 * network.memory(SAMPLES)))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="needs glibc and the peak of memory in /proc",
)
def test_a_process_grows_no_more_than_predicted():
    """Small arrays that outlive a batch would lie between freed ones, and keep their memory."""
    code = GROWTH.replace("SAMPLES", "600")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 1.3


def test_every_rank_makes_the_module_for_itself():
    network = build(settings("model.network=small-pictures").model, (1, 8, 8), 10)
    params, inputs, _ = draw(network)
    text = pickle.dumps(network)
    assert b"Pictures" not in text
    close(pickle.loads(text).outputs(params, inputs), network.outputs(params, inputs))  # noqa: S301


def test_evaluation_sees_no_widths():
    network, module = make("pictures")
    params, inputs, labels = draw(network, 30)
    right, losses = scores(network, params[None], inputs, labels, "cross-entropy")
    outputs = oracle.module_outputs(module, params, inputs)
    assert right.sum() == int((outputs.argmax(1) == labels).sum())
    assert losses[0] == pytest.approx(oracle.loss_of(outputs, labels, "cross-entropy"))


@pytest.mark.parametrize("kind", ["inputs", "dense", "ntk-fl"])
def test_a_round_on_pictures_equals_the_oracle(kind):
    """Inputs with axes travel as samples, and Jacobians entry by entry if that is asked for."""
    network, module = make("pictures")
    federation = make_federation(network, (4, 3, 5))
    weights = random_weights(federation)
    settings = {"lr": 0.05, "taus": (3, 20), "tolerance": 1e-9}
    if kind != "ntk-fl":
        method = NtkDfl(NtkDflSettings(**settings, jacobian=kind), federation)
        hoods = [[0, 1], [0, 1], [2]]
    else:
        method = NtkFl(NtkFlSettings(**settings, clients_per_round=2), federation)
        weights = weights[:1].repeat(3, 1)
        hoods = [participants(3, 2, federation.seed, 0).tolist()] * 3
    with Exchange(federation, Graph.from_pairs(3, [(0, 1)])) as exchange, torch.inference_mode():
        found = method.round(weights, 0, exchange)
    for client, hood in enumerate(hoods):
        start = weights[0] if kind == "ntk-fl" else weights[hood].mean(0)
        x = torch.cat([federation.samples[j].inputs for j in hood])
        labels = torch.cat([federation.samples[j].labels for j in hood])
        outputs, entries = (
            partial(function, module)
            for function in (oracle.module_outputs, oracle.module_jacobian)
        )
        wanted, tau = oracle.step_of(
            outputs, entries, start, x, labels, 0.05, [3, 20], "cross-entropy"
        )
        assert found.taus[client] == tau
        assert (found.weights[client] - wanted).norm() < 1e-6 * (wanted - start).norm()


# ---------------------------------------------------------------------------------------------- refusals


class Odd(nn.Module):
    """A linear layer with something around it."""

    def __init__(self, around) -> None:
        super().__init__()
        self.linear, self.around = nn.Linear(6, 3), around

    def forward(self, x):
        return self.around(self.linear, x)


class Counting(nn.Module):
    """Remembers how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


class Halved(torch.autograd.Function):
    """Its backward pass is that of a mean over the batch."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient / len(gradient)


REFUSED = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)),
        "BatchNorm1d '1'.*GroupN",
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)),
        "Dropout '1'.*probability",
    ),
    "attention's dropout": (
        lambda: nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1)),
        "MultiheadAttention '0' draws random numbers",
    ),
    "complex": (lambda: nn.Linear(6, 3, dtype=torch.complex64), "parameter weight is complex"),
    "lazy": (lambda: nn.LazyLinear(3), "parameter weight has no shape yet.*sizes"),
    "nothing to train": (lambda: nn.Linear(6, 3).requires_grad_(False), "no parameter requires"),
    "mean of the batch": (
        lambda: Odd(lambda linear, x: linear(x - x.mean(0))),
        "depend on the other samples",
    ),
    "functional dropout": (
        lambda: Odd(lambda linear, x: nn.functional.dropout(linear(x))),
        "two passes give different outputs",
    ),
    "counting": (Counting, "a pass changes its buffers"),
    "another shape": (lambda: nn.Linear(6, 4), r"returns the shape \[8, 4\].*\[8, 3\]"),
    "a tuple": (lambda: Odd(lambda linear, x: (linear(x), x)), "returns tuple; return a tensor"),
    "another input": (lambda: nn.Linear(5, 3), r"fails on float64 inputs of shape \[8, 6\]"),
    "a constant tensor": (
        lambda: Odd(lambda linear, x: linear(x) @ torch.ones(3, 3)),
        "as buffers",
    ),
    "a backward pass over the batch": (
        lambda: Odd(lambda linear, x: Halved.apply(linear(x))),
        "HalvedBackward is not the derivative of the forward pass; pass every parameter",
    ),
    "not finite": (lambda: Odd(lambda linear, x: linear(x).log()), "outputs are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_cannot_be_networks_are_refused_with_a_reason(name):
    factory, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        ModuleNetwork(factory, (6,), 3, name)


def test_a_factory_with_other_random_numbers_is_refused():
    rng = np.random.default_rng()

    def factory():
        module = nn.Linear(6, 3)
        with torch.no_grad():
            module.bias += float(rng.random())
        return module

    with pytest.raises(InputError, match="other weights.*torch's own generator"):
        ModuleNetwork(factory, (6,), 3, "numpy")


def test_a_zero_branch_does_not_hide_a_wrong_derivative():
    """Without jittered parameters the branch would count for nothing."""

    def hidden():
        module = Odd(lambda linear, x: Halved.apply(linear(x)))
        nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(module.linear.bias)
        return module

    with pytest.raises(InputError, match="HalvedBackward is not the derivative"):
        ModuleNetwork(hidden, (6,), 3, "zero")


# -------------------------------------------------------------------------------------- in configurations


def settings(*words, name="ntk-dfl"):
    given = [
        "model.name=plugin",
        "clients=6",
        "topology.degree=2",
        f"algorithm.name={name}",
        *words,
    ]
    return parse([*read_source("quickstart"), read_overrides(given)])


def test_a_registered_network_is_chosen_by_its_name_and_options():
    config = settings("model.network=small-pictures", "model.options={channels: 3}")
    assert parse([read_yaml(config.to_yaml(), "a configuration")]) == config
    network = build(config.model, (1, 8, 8), 10)
    assert network.layout.shapes["first.weight"] == (3, 1, 3, 3)
    assert "small-pictures" in network.describe()


def test_samples_travel_where_there_is_no_factored_form():
    assert settings("model.network=small-pictures").algorithm.jacobian == "inputs"
    assert parse(read_source("quickstart")).algorithm.jacobian == "factored"
    asked = settings("model.network=small-pictures", "algorithm.jacobian=factored")
    with pytest.raises(InputError, match=r"small-pictures.*set algorithm\.jacobian=inputs"):
        prepare(asked, 1)


def test_an_exported_state_dict_is_complete_and_starts_another_run(tmp_path):
    """It has buffers, frozen parameters and both names of a tied weight, which are not in the vector."""
    given = [
        "rounds=1",
        "dataset={name: breast-cancer}",
        "model.network=tied",
        "evaluation.clients=false",
    ]
    config = settings(*given, "algorithm.epochs=1", name="dfedavg")
    record = run(config, tmp_path / "a.h5")
    state = record.average()
    module = Tied(30, 2)
    before = copy.deepcopy(module.state_dict())
    module.load_state_dict(state)
    assert torch.equal(state["second.weight"], state["first.weight"])
    assert torch.equal(state["scale"], before["scale"])
    assert not torch.equal(state["last.weight"], before["last.weight"])
    torch.save(state, tmp_path / "a.pt")
    begun = settings(*given, f"model.weights={tmp_path / 'a.pt'}")
    layout = prepare(begun, 1).network.layout
    assert torch.equal(read_weights(tmp_path / "a.pt", layout).float(), layout.flatten(state))
    state["shift"] += 1
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match="shift must have the values that the network has"):
        prepare(begun, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.network=smal-pictures"], "did you mean 'small-pictures'.*register_network"),
        (
            ["model.network=small-pictures", "model.hidden=[3]"],
            r"model.hidden: unknown key, got \[3\]; there are: init, name, network, options, weights",
        ),
        (["model.network=small-pictures", "model.name=mpl"], "did you mean 'mlp'"),
        ([], "model.network: Field required"),
    ],
)
def test_settings_of_networks_are_checked(words, message):
    with pytest.raises(InputError, match=message):
        settings(*words)


def test_what_a_factory_does_wrong_is_told():
    config = settings("model.network=small-pictures", "model.options={canals: 3}")
    with pytest.raises(InputError, match="factory of 'small-pictures' failed.*canals"):
        prepare(config, 1)
    register_network("no-module", lambda shape, classes: classes)
    with pytest.raises(InputError, match=r"must return a torch.nn.Module, got int"):
        build(settings("model.network=no-module").model, (1, 8, 8), 10)
    with pytest.raises(InputError, match="there is a network 'no-module' already"):
        register_network("no-module", lambda shape, classes: classes)
    with pytest.raises(InputError, match="must be callable"):
        register_network("number", 3)
    assert list(NETWORKS) == ["mlp", "cnn", "resnet", "transformer", "plugin"]


@pytest.mark.parametrize(
    ("section", "shape", "message"),
    [
        ("{name: cnn, kernel: 4}", (1, 8, 8), "model.kernel.*odd"),
        ("{name: cnn}", (64,), r"cnn takes pictures.*\[64\].*mlp"),
        ("{name: cnn, channels: [4, 4]}", (1, 8, 3), "at least 4 x 4 pixels, got 8 x 3"),
        ("{name: resnet, depth: 9}", (1, 8, 8), "model.depth.*6 n \\+ 2"),
        ("{name: resnet, norm: batch}", (1, 8, 8), "samples of a batch depend on each other"),
        ("{name: transformer, heads: 3}", (1, 8, 8), "multiple of heads, got width 64 with 3"),
        ("{name: transformer, patch: 3}", (1, 8, 8), "model.patch must divide.*got 3"),
        ("{name: transformer}", (8, 8), "takes pictures of shape"),
        ("{name: plugin, network: small-pictures, scheme: torch}", (1, 8, 8), "unknown key"),
    ],
)
def test_what_a_built_in_network_cannot_do_is_refused(section, shape, message):
    with pytest.raises(InputError, match=message):
        build(
            parse([*read_source("quickstart"), read_overrides([f"model={section}"])]).model,
            shape,
            10,
        )


def test_numbers_that_are_no_tokens_are_refused():
    config = [
        "model.name=transformer",
        "dataset={name: breast-cancer}",
        "clients=4",
        "topology.degree=3",
    ]
    with pytest.raises(InputError, match="whole numbers from 0 to 1.*standardize=none"):
        prepare(parse([*read_source("quickstart"), read_overrides(config)]), 1)


def test_samples_of_any_shape_are_flattened_for_a_perceptron():
    network = build(parse(read_source("quickstart")).model, (2, 3, 4), 10)
    assert network.shape == (24,)


def test_settings_say_truly_whether_there_is_a_factored_form():
    for words in ((), ("model={name: plugin, network: small-pictures}",)):
        config = parse([*read_source("quickstart"), read_overrides(words)])
        network = build(config.model, (1, 8, 8), 10)
        assert config.model.factored == (network.factored is not None)
