"""What a trial of a few samples may not show, what passes leave behind, and what callers hand over."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import mpi_ntkdfl as nd
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.plan import planned
from mpi_ntkdfl.runtime.errors import InputError
from tests import oracle
from tests.module_table import Of, free
from tests.test_modules import close, entries


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


def agree(module: nn.Module, inputs: torch.Tensor) -> None:
    close(nd.kernel(module, inputs), oracle.kernel(entries(module, inputs)), 1e-10)


# ------------------------------------------------------------------- samples that the trial did not see


def sorted_by_value(m, x):
    order = x[:, 0].argsort()
    return m.last(torch.zeros(len(x), 5).to(x).index_copy(0, order, torch.tanh(m.first(x[order]))))


def sorted_by_expert(m, x):
    order = (x[:, 0] > 0).long().argsort(stable=True)
    return m.last(torch.tanh(m.first(x[order]))[order.argsort()])


def dispatched(m, x):
    """Experts get their samples by a product with a mask, as in GShard."""
    mine = functional.one_hot((x[:, 0] > 0).long(), 2)
    place = functional.one_hot((mine.cumsum(0) - 1).clamp(min=0), len(x))
    mask = (mine[:, :, None] * place).to(x)
    hidden = torch.tanh(m.first(torch.einsum("nec,nd->ecd", mask, x).flatten(0, 1)))
    return m.last(torch.einsum("nec,ecd->nd", mask, hidden.unflatten(0, (2, -1))))


def gated(m, x):
    """A branch with the time first, which the trial's samples close."""
    time = x.unflatten(1, (3, 2)).transpose(0, 1)
    inner = m.inner(torch.tanh(m.outer(time))) * (x[:, 0] > 0).to(x)[None, :, None]
    return m.last(inner.sum(0)) + m.beside(x)


def first_of_many(m, x):
    """With nine places, the first place of each sample has the same number in both orders."""
    tokens = torch.cat([x.unflatten(1, (3, 2)), m.more.expand(len(x), -1, -1)], 1)
    return m.last(torch.tanh(m.outer(tokens)))[:, 0]


MOVING = {
    "sorted by value": lambda: Of(sorted_by_value, first=nn.Linear(6, 5), last=nn.Linear(5, 3)),
    "sorted by expert": lambda: Of(sorted_by_expert, first=nn.Linear(6, 5), last=nn.Linear(5, 3)),
    "dispatched": lambda: Of(dispatched, first=nn.Linear(6, 5), last=nn.Linear(5, 3)),
    "a closed branch": lambda: Of(
        gated,
        outer=nn.Linear(2, 5),
        inner=nn.Linear(5, 5),
        last=nn.Linear(5, 3, bias=False),
        beside=nn.Linear(6, 3),
    ),
    "the first place": lambda: Of(
        first_of_many, outer=nn.Linear(2, 5), last=nn.Linear(5, 3), more=free(1, 6, 2)
    ),
}


@pytest.mark.parametrize("name", MOVING)
def test_samples_that_differ_from_those_of_the_trial_get_the_right_kernel(name):
    """In the trial all samples go to one expert in ascending order, and the others do not."""
    torch.manual_seed(1)
    module = MOVING[name]().double()
    trial, inputs = normal(8, 6), normal(13, 6)
    trial[:, 0] = torch.linspace(-2, -1, 8)
    function = FlatModule(module)
    plan = planned(function, function.flat(), trial, activations=100)
    assert plan.linear or plan.multiplied
    limits = Limits(2**20, 13, vectorised=False)
    operator = ModuleJacobian(function, function.flat(), inputs, 3, limits, plan)
    close(operator.trace_gram(), 3 * oracle.kernel(entries(module, inputs)), 1e-10)


def test_samples_may_miss_all_parameters():
    def forward(m, x):
        return torch.stack([m.a(one) if one[0] > 0 else one[:3] for one in x])

    module, inputs = Of(forward, a=nn.Linear(6, 3)).double(), normal(9, 6)
    reached = (inputs[:, 0] > 0).double()
    wanted = entries(module.a, inputs) * reached[:, None, None]
    operator = nd.jacobian(module, inputs, memory_limit=1)  # sample by sample
    close(operator.trace_gram(), 3 * oracle.kernel(wanted), 1e-10)
    product = operator.transposed_product(torch.ones(1, 9, 3).double())
    close(product[0], wanted.sum((0, 1)), 1e-10)
    network = ModuleNetwork(lambda: module, (6,), 3, "branches")
    missing, params = inputs[reached == 0], network.own_parameters()
    labels = torch.zeros(len(missing), dtype=torch.int64)
    assert not network.loss_gradient(params, missing, labels, "cross-entropy").any()


def test_equal_samples_do_not_hide_that_samples_see_each_other():
    def forward(m, x):
        here = m.a(x)
        return here - here.mean(0)

    inputs = normal(20, 6)
    inputs[:18] = inputs[0]
    with pytest.raises(InputError, match=r"depend on the other samples.*; "):
        nd.kernel(Of(forward, a=nn.Linear(6, 3)).double(), inputs)


def test_experts_with_limited_room_are_refused():
    def forward(m, x):
        kept = torch.cumsum(x[:, 0] > 0, 0) <= 10
        return m.a(x) * kept[:, None] + m.b(x)

    module = Of(forward, a=nn.Linear(6, 3), b=nn.Linear(6, 3)).double()
    with pytest.raises(InputError, match=r"depend on the other samples.*; "):
        nd.kernel(module, normal(20, 6).abs())


def test_a_single_sample_stays_in_its_range():
    agree(Of(lambda m, x: m.a(x.log()), a=nn.Linear(6, 3)).double(), normal(1, 6).abs())


def test_a_buffer_may_hold_nan():
    module = Of(lambda m, x: m.a(x), a=nn.Linear(6, 3), seen=torch.full((2,), torch.nan))
    agree(module.double(), normal(9, 6))


# ------------------------------------------------------------------------- what passes leave in a module


def keeping(m, x):
    m.calls = getattr(m, "calls", 0) + 1
    m.features = torch.tanh(m.a(x))
    m.history.append(m.features)
    m.seen = x.mean()
    return m.b(m.features)


def with_history() -> nn.Module:
    module = Of(keeping, a=nn.Linear(6, 5), b=nn.Linear(5, 3))
    module.history, module.features = [], None
    module.register_buffer("seen", torch.zeros(()))
    return module


def caching(m, x):
    if m.cache is None:
        m.cache = m.w @ m.w.T
    return m.a(x @ m.cache)


def with_cache() -> nn.Module:
    module = Of(caching, w=free(6, 6), a=nn.Linear(6, 3))
    module.cache = None
    return module


def with_backward_hook() -> nn.Module:
    module = perceptron()
    module.seen = []
    module[0].register_full_backward_hook(lambda part, given, got: module.seen.append(got))
    return module


def pruned() -> nn.Module:
    module = perceptron()
    prune.l1_unstructured(module[0], "weight", 0.4)
    return module


LEAVING = {
    "features, a counter, a list and a buffer": with_history,
    "a cache": with_cache,
    "a hook that collects gradients": with_backward_hook,
    "pruned weights": pruned,
    "weight norm by hooks": lambda: nn.Sequential(
        nn.utils.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)
    ),
    "spectral norm by hooks": lambda: nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)
    ).eval(),
}


def attributes(module):
    own = (
        (name, part, vars(part), part._parameters, part._buffers)
        for name, part in module.named_modules()
    )
    return {
        (name, key): (value, len(value) if isinstance(value, list) else 0)
        for name, _, *spaces in own
        for space in spaces
        for key, value in space.items()
    }


@pytest.mark.parametrize("name", LEAVING)
def test_passes_leave_nothing_in_a_module(name):
    torch.manual_seed(3)
    module, inputs = LEAVING[name]().double(), normal(9, 6)
    before = attributes(module)
    found = nd.kernel(module, inputs)
    nd.jacobian(module, inputs).transposed_product(torch.ones(1, 9, 3).double())
    after = attributes(module)
    assert before.keys() == after.keys()
    assert all(after[key][0] is value and after[key][1] == n for key, (value, n) in before.items())
    close(found, oracle.kernel(entries(module, inputs)), 1e-10)


def counted(m, x):
    m.n += 1
    return m.a(x)


def averaged(m, x):
    with torch.no_grad():
        m.mean.mul_(0.9).add_(0.1 * x.mean(0))
    return m.a(x - m.mean)


def clamped(m, x):
    m.a.weight.data.clamp_(-0.1, 0.1)
    return m.a(x)


def annealed(m, x):
    m.step = getattr(m, "step", 0) + 1
    return m.a(x) / m.step


def rarely_flipped(draw):
    def forward(m, x):
        return m.a(x.flip(-1) if draw() < 1e-6 else x)

    return forward


CHANGING = {
    "a counter": (counted, "a pass changes its buffers"),
    "a moving average": (averaged, "two passes give different"),
    "clamped weights": (clamped, "a pass changes its parameters"),
    "changed inputs": (lambda m, x: m.a(x.mul_(2)), "a pass changes its inputs"),
    "annealing": (annealed, "two passes give different"),
    "noise": (lambda m, x: m.a(x + torch.randn_like(x)), "two passes give different"),
    "rare noise of torch": (rarely_flipped(lambda: torch.rand(())), "draws random numbers"),
    "rare noise of numpy": (rarely_flipped(np.random.rand), "draws random numbers"),  # noqa: NPY002
    "rare noise of Python": (rarely_flipped(random.random), "draws random numbers"),
}


@pytest.mark.parametrize("name", CHANGING)
def test_modules_that_passes_change_are_refused_unchanged(name):
    forward, message = CHANGING[name]
    module = Of(forward, a=nn.Linear(6, 3), mean=torch.zeros(6), n=torch.zeros(1)).double()
    inputs = normal(9, 6)
    before, given = {key: each.clone() for key, each in module.state_dict().items()}, inputs.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:]  # noqa: NPY002
    with pytest.raises(InputError, match=f"{message}.*; "):
        nd.kernel(module, inputs)
    assert torch.equal(inputs, given)
    assert all(torch.equal(each, before[key]) for key, each in module.state_dict().items())
    assert "step" not in vars(module)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    after = np.random.get_state()[1:]  # noqa: NPY002
    assert all(np.array_equal(one, two) for one, two in zip(states[2], after, strict=True))


# -------------------------------------------------------------------------------- what callers hand over


def test_results_have_the_type_of_the_inputs():
    inputs = normal(9, 6)
    wanted = nd.kernel(perceptron(torch.float32).double(), inputs)
    close(nd.kernel(perceptron(torch.float32), inputs), wanted, 1e-10)
    single = nd.kernel(perceptron(torch.float32), inputs.float())
    assert single.dtype is torch.float32
    close(single.double(), wanted, 1e-5)


def test_inputs_may_require_gradients_and_have_gaps():
    module, inputs = perceptron(), normal(18, 12)[::2, ::2]
    wanted = nd.kernel(module, inputs.contiguous())
    point = inputs.clone().requires_grad_()
    found = nd.jacobian(module, point)
    assert not any(
        each.requires_grad for each in (found.outputs, found.dense(), found.trace_gram())
    )
    assert point.grad is None
    for given in (point, inputs):
        close(nd.kernel(module, given), wanted, 1e-12)
    with torch.no_grad():
        close(nd.kernel(module, inputs), wanted, 1e-12)
    with torch.inference_mode():
        close(nd.kernel(module, inputs.clone()), wanted, 1e-12)


@pytest.mark.parametrize("limit", [1, 1e4, 2.5e9])
def test_a_limit_may_be_small_or_no_whole_number(limit):
    module, inputs = perceptron(), normal(5, 6)
    close(nd.kernel(module, inputs, limit), nd.kernel(module, inputs), 1e-12)


def test_ranges_of_entries_may_be_empty():
    operator = nd.jacobian(perceptron(), normal(4, 6))
    assert operator.dense(7, 7).shape == (4, 3, 0)


GIVEN = {
    "no module": (lambda: (lambda x: x, normal(4, 6)), "must be a torch.nn.Module, got function"),
    "an array": (lambda: (perceptron(), np.ones((4, 6))), "dense tensor.*got ndarray"),
    "a pair": (lambda: (perceptron(), (normal(4, 6), normal(4, 6))), "dense tensor.*got tuple"),
    "no samples": (lambda: (perceptron(), normal(0, 6)), r"at least one sample.*\[0, 6\]"),
    "half precision": (lambda: (perceptron(), normal(4, 6).half()), "got torch.float16"),
    "other features": (lambda: (perceptron(), normal(4, 5)), "fails on float64 inputs of shape"),
    "nan": (lambda: (perceptron(), normal(4, 6) * np.nan), "outputs are not finite"),
    "no limit": (lambda: (perceptron(), normal(4, 6), 0), "memory_limit must be at least 1 byte"),
    "a wrong limit": (
        lambda: (perceptron(), normal(4, 6), "1 GB"),
        "memory_limit must be a number",
    ),
    "meta": (lambda: (nn.Linear(6, 3, device="meta"), normal(4, 6)), "device meta"),
    "no forward": (lambda: (nn.ModuleList([nn.Linear(6, 3)]), normal(4, 6)), "NotImplementedError"),
    "copies": (lambda: (nn.DataParallel(perceptron()), normal(4, 6)), "DataParallel hands"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_wrong_arguments_are_refused_with_the_way_out(name):
    make, message = GIVEN[name]
    with pytest.raises(InputError, match=f"{message}.*; |{message}.*None"):
        nd.kernel(*make())
