"""Small modules of all kinds, with the shape of a sample. A module that fails is one more row.

Every module has three outputs. The tests compare its kernel with a plain loop of autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, rnn
from torch.utils.checkpoint import checkpoint

BATCH_FIRST = {"batch_first": True}


class Of(nn.Module):
    """A module from its parts and a function of the module and the inputs."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 2)


def head(module: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(module, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3))


class Scale(nn.Module):
    """A parametrisation: rows of fixed length."""

    def forward(self, weight):
        return weight / weight.norm(dim=1, keepdim=True)


class Cube(torch.autograd.Function):
    """A right function of the user's own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Largest(torch.autograd.Function):
    """A function whose second output is an integer."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.exp())
        return x.exp(), x.argmax(1)

    @staticmethod
    def backward(ctx, gradient, _):
        return gradient * ctx.saved_tensors[0]


def energy(m, x):
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(m.e(point).sum(), point, create_graph=True)
    return force[:, :3]


def careless_energy(m, x):
    x.requires_grad_()
    return torch.autograd.grad(m.e(x).sum(), x, create_graph=True)[0][:, :3]


def lowered(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here = m.a(x)
    return m.b(here.to(x.dtype))


def hooked_parameter() -> nn.Module:
    module = nn.Linear(6, 3)
    module.weight.register_hook(lambda gradient: gradient * 0.5)
    return module


def hidden(weight: torch.Tensor):
    """A function that reads a parameter which is not passed to it."""

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(weight.detach())
            return x @ weight.detach()

        @staticmethod
        def backward(ctx, gradient):
            (kept,) = ctx.saved_tensors
            return gradient @ kept.T

    return Hidden


def lora() -> nn.Module:
    def forward(m, x):
        return functional.linear(x, m.base + m.b @ m.a)

    return Of(forward, base=torch.randn(3, 6), a=free(2, 6), b=free(3, 2))


def mixture(m, x):
    """Each sample goes to the expert that its inputs choose."""
    chosen = (x[:, 0] > 0).long()
    out = x.new_zeros(len(x), 5)
    for number, expert in enumerate(m.experts):
        rows = (chosen == number).nonzero().flatten()
        out = out.index_add(0, rows, expert(x[rows]))
    return m.last(torch.tanh(out))


def shuffled(m, x):
    """Samples are sorted by their inputs, passed on, and put back."""
    order = x[:, 0].argsort()
    out = torch.zeros_like(x[:, :3])
    return out.index_copy(0, order, m.linear(x[order]))


def packed(m, x):
    lengths = 1 + (x[:, :, 0] > 0).sum(1).clamp(max=x.shape[1] - 1)
    out, _ = m.gru(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return m.last(rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0][:, 0])


def squeeze_excite(m, x):
    here = torch.relu(m.conv(x))
    gate = torch.sigmoid(m.up(torch.relu(m.down(here.mean((2, 3))))))
    return m.last((here * gate[:, :, None, None]).flatten(1))


def cell_loop(m, x):
    state = x.new_zeros(len(x), 5)
    for step in x.unbind(1):
        state = m.cell(step, state)
    return m.last(state)


def rank_weights(m, x):
    """Weights that follow from the sample."""
    weight = m.hyper(x).view(-1, 3, 6)
    return (weight @ x[:, :, None])[:, :, 0]


def assigned(m, x):
    """A parameter that is written into a part of a tensor."""
    board = x.new_zeros(len(x), 4, 6)
    board[:, 1:3] = m.block
    board[:, 0] = x
    return m.last(torch.tanh(board).flatten(1))


def class_token(m, x):
    tokens = torch.cat([m.token.expand(len(x), -1, -1), m.embed(x)], 1) + m.places
    return m.last(m.layer(tokens)[:, 0])


def time_major(m, x):
    here = torch.tanh(m.first(x.transpose(0, 1)))
    return m.last(here + m.shift).sum(0)


def patched_output(m, x):
    """A hook of the user's changes an output."""
    return m.last(torch.tanh(m.first(x)))


def with_hook() -> nn.Module:
    module = Of(patched_output, first=nn.Linear(6, 5), last=nn.Linear(5, 3))
    module.first.register_forward_hook(lambda part, given, output: output * 2 + given[0][:, :5])
    return module


def tied_embedding(m, x):
    here = torch.tanh(m.table(x).mean(1))
    return functional.linear(here, m.table.weight)


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    module[0].requires_grad_(False)
    return module


def zero_branch() -> nn.Module:
    module = Of(
        lambda m, x: m.last(x + m.branch(torch.tanh(m.inner(x)))),
        inner=nn.Linear(6, 6),
        branch=nn.Linear(6, 6),
        last=nn.Linear(6, 3),
    )
    nn.init.zeros_(module.branch.weight)
    nn.init.zeros_(module.branch.bias)
    return module


def checkpointed(reentrant: bool):
    def forward(m, x):
        return m.last(checkpoint(m.inner, x, use_reentrant=reentrant))

    return Of(forward, inner=nn.Sequential(nn.Linear(6, 5), nn.Tanh()), last=nn.Linear(5, 3))


def scripted() -> nn.Module:
    part = torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh()))
    return nn.Sequential(part, nn.Linear(5, 3))


def hiding() -> nn.Module:
    linear, weight = nn.Linear(6, 3), free(3, 3)
    return Of(lambda m, x: hidden(m.weight).apply(m.linear(x)), linear=linear, weight=weight)


def half_hiding() -> nn.Module:
    """The hidden parameter is used openly as well."""
    linear, weight = nn.Linear(6, 3), free(3, 3)

    def forward(m, x):
        return hidden(m.weight).apply(m.linear(x)) + m.linear(x) @ m.weight

    return Of(forward, linear=linear, weight=weight)


def with_norm(norm: nn.Module, *axes: int) -> nn.Module:
    width = 1
    for axis in axes:
        width *= axis
    return head(norm, width)


def attention(m, x):
    return m.last(m.mix(x, x, x, need_weights=False)[0].flatten(1))


def fused_attention(m, x):
    q, k, v = m.qkv(x).chunk(3, -1)
    return m.last(
        functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).flatten(1)
    )


def pictures_through_all(m, x):
    """Convolutions, norms and pooling with parameters below all of them."""
    here = functional.max_pool2d(torch.relu(m.norm(m.first(x))), 3, 2, 1)
    here = m.rest(m.sparse(here) + functional.avg_pool2d(m.wide(here), 3, 2, 1))
    return m.last(here.mean((2, 3)) * here[:, :, 0, -1])


def products_of_places(m, x):
    """Attention by products, functions of single entries, and data times data."""
    x = m.norm(m.embed(x))
    q, k, v = m.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    x = x + mixed.transpose(1, 2).flatten(2)
    gate = torch.sigmoid(m.gate(x)) * functional.silu(x) * x
    return m.last(functional.gelu(gate - functional.elu(x)).mean(1, keepdim=True)[:, 0])


def layer(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, **options)


def linear_calls(call: Callable) -> nn.Module:
    return Of(
        lambda m, x: call(m, torch.tanh(m.first(x))), first=nn.Linear(6, 5), w=free(3, 5), b=free(3)
    )


PICTURE, SERIES, TOKENS = (2, 5, 5), (4, 4), (7,)

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # Linear maps.
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "without biases": (lambda: nn.Linear(6, 3, bias=False), (6,)),
    "a layer used twice": (
        lambda: Of(
            lambda m, x: m.last(torch.tanh(m.one(torch.tanh(m.one(x))))),
            one=nn.Linear(6, 6),
            last=nn.Linear(6, 3),
        ),
        (6,),
    ),
    "a bias shared by two layers": (
        lambda: Of(
            lambda m, x: functional.linear(torch.tanh(functional.linear(x, m.u, m.b)), m.w, m.b),
            u=free(3, 6),
            w=free(3, 3),
            b=free(3),
        ),
        (6,),
    ),
    "a matrix and its transpose": (
        lambda: Of(
            lambda m, x: m.last(torch.tanh(x @ m.w) @ m.w.T), w=free(6, 5), last=nn.Linear(6, 3)
        ),
        (6,),
    ),
    "functional linear": (lambda: linear_calls(lambda m, x: functional.linear(x, m.w, m.b)), (6,)),
    "matmul": (lambda: linear_calls(lambda m, x: x @ m.w.T + m.b), (6,)),
    "addmm with factors": (
        lambda: linear_calls(lambda m, x: torch.addmm(m.b, x, m.w.T, beta=0.5, alpha=2)),
        (6,),
    ),
    "a full matrix as bias": (
        lambda: linear_calls(lambda m, x: torch.addmm(m.b[:1, None] * x[:, :3], x, m.w.T)),
        (6,),
    ),
    "einsum": (lambda: linear_calls(lambda m, x: torch.einsum("ni,oi->no", x, m.w) - m.b), (6,)),
    "bmm with an expanded weight": (
        lambda: linear_calls(
            lambda m, x: torch.bmm(m.w.expand(len(x), -1, -1), x[:, :, None])[:, :, 0]
        ),
        (6,),
    ),
    "parameter times data": (lambda: linear_calls(lambda m, x: (m.w @ x.T).T * m.b), (6,)),
    "layer.weight used directly": (
        lambda: Of(lambda m, x: x @ m.inner.weight.T, inner=nn.Linear(6, 3)),
        (6,),
    ),
    "layer.forward()": (lambda: Of(lambda m, x: m.inner.forward(x), inner=nn.Linear(6, 3)), (6,)),
    "linear over places": (
        lambda: Of(
            lambda m, x: m.last(torch.tanh(m.first(x))).mean(1),
            first=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
        SERIES,
    ),
    "time-major": (
        lambda: Of(time_major, first=nn.Linear(4, 5), last=nn.Linear(5, 3), shift=free(4, 1, 5)),
        SERIES,
    ),
    "as many places as samples": (
        lambda: Of(time_major, first=nn.Linear(4, 5), last=nn.Linear(5, 3), shift=free(8, 1, 5)),
        (8, 4),
    ),
    "bilinear": (lambda: Of(lambda m, x: m.two(x, x[:, :2]), two=nn.Bilinear(6, 2, 3)), (6,)),
    "chunks of one weight": (
        lambda: Of(
            lambda m, x: m.last(torch.cat([x @ w.T for w in m.w.chunk(2)], 1)),
            w=free(4, 6),
            last=nn.Linear(4, 3),
        ),
        (6,),
    ),
    "in-place ReLU and residual": (
        lambda: Of(
            lambda m, x: m.last(torch.relu_(m.a(x).add_(x)) + x),
            a=nn.Linear(6, 6),
            last=nn.Linear(6, 3),
        ),
        (6,),
    ),
    "in-place product with a parameter": (
        lambda: Of(
            lambda m, x: m.last(m.first(x).mul_(m.scale)),
            first=nn.Linear(6, 5),
            scale=free(5),
            last=nn.Linear(5, 3),
        ),
        (6,),
    ),
    "a zero branch": (zero_branch, (6,)),
    "frozen parameters": (frozen, (6,)),
    "an unused parameter": (lambda: Of(lambda m, x: m.a(x), a=nn.Linear(6, 3), b=free(2)), (6,)),
    "a hook of the user's": (with_hook, (6,)),
    # Weights that follow from parameters.
    "weight norm": (lambda: head(parametrizations.weight_norm(nn.Linear(6, 5)), 5), (6,)),
    "spectral norm": (
        lambda: head(parametrizations.spectral_norm(nn.Linear(6, 5)).eval(), 5),
        (6,),
    ),
    "a parametrisation": (
        lambda: (lambda m: (parametrize.register_parametrization(m, "weight", Scale()), m)[1])(
            nn.Linear(6, 3)
        ),
        (6,),
    ),
    "masked weights": (
        lambda: Of(
            lambda m, x: functional.linear(x, m.w * m.mask),
            w=free(3, 6),
            mask=(torch.arange(18.0).view(3, 6) % 2),
        ),
        (6,),
    ),
    "standardised weights": (
        lambda: Of(
            lambda m, x: functional.linear(x, (m.w - m.w.mean(1, True)) / m.w.std(1, keepdim=True)),
            w=free(3, 6),
        ),
        (6,),
    ),
    "low-rank update": (lora, (6,)),
    "weights from the data": (lambda: Of(rank_weights, hyper=nn.Linear(6, 18)), (6,)),
    "weights from a network": (
        lambda: Of(
            lambda m, x: functional.linear(x, m.hyper(m.code).view(3, 6)),
            hyper=nn.Linear(2, 18),
            code=free(2),
        ),
        (6,),
    ),
    "slices that are written": (
        lambda: Of(assigned, block=free(2, 6), last=nn.Linear(24, 3)),
        (6,),
    ),
    # Convolutions.
    "convolution": (lambda: head(nn.Conv2d(2, 3, 3, 2, 1), 27), PICTURE),
    "convolution with unequal axes": (
        lambda: head(nn.Conv2d(2, 3, (3, 2), (1, 2), (1, 0), (2, 1)), 18),
        PICTURE,
    ),
    "convolution in one dimension": (lambda: head(nn.Conv1d(4, 3, 2, dilation=2), 6), SERIES),
    "convolution in three dimensions": (lambda: head(nn.Conv3d(1, 2, 2), 64), (1, 3, 5, 5)),
    "grouped convolution": (lambda: head(nn.Conv2d(4, 6, 2, groups=2), 54), (4, 4, 4)),
    "depthwise convolution": (lambda: head(nn.Conv2d(2, 4, 3, groups=2), 36), PICTURE),
    "transposed convolution": (lambda: head(nn.ConvTranspose2d(2, 3, 2, 2), 300), PICTURE),
    "padding same": (lambda: head(nn.Conv2d(2, 2, (2, 3), padding="same"), 50), PICTURE),
    "circular padding": (
        lambda: head(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), 50),
        PICTURE,
    ),
    "convolution used twice": (
        lambda: (lambda c: head(nn.Sequential(c, nn.Tanh(), c), 50))(nn.Conv2d(2, 2, 3, padding=1)),
        PICTURE,
    ),
    "channels last": (
        lambda: head(nn.Conv2d(2, 3, 3), 27).to(memory_format=torch.channels_last),
        PICTURE,
    ),
    "a kernel as parameter": (
        lambda: head(
            Of(lambda m, x: functional.conv2d(x, m.w.view(2, 2, 3, 3)), w=free(2, 18)), 18
        ),
        PICTURE,
    ),
    "squeeze and excitation": (
        lambda: Of(
            squeeze_excite,
            conv=nn.Conv2d(2, 4, 3),
            down=nn.Linear(4, 2),
            up=nn.Linear(2, 4),
            last=nn.Linear(36, 3),
        ),
        PICTURE,
    ),
    "convolutions, norms and pooling": (
        lambda: Of(
            pictures_through_all,
            first=nn.Conv2d(2, 4, 3, padding=1),
            norm=nn.GroupNorm(2, 4),
            sparse=nn.Conv2d(4, 3, 1, 2),
            wide=nn.Conv2d(4, 3, 3, padding=1),
            rest=nn.Sequential(nn.GroupNorm(1, 3, affine=False), nn.Conv2d(3, 3, 2), nn.Tanh()),
            last=nn.Linear(3, 3),
        ),
        (2, 9, 7),
    ),
    # Norms and products entry by entry.
    "group norm": (
        lambda: with_norm(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), 36),
        PICTURE,
    ),
    "layer norm": (lambda: with_norm(nn.LayerNorm([4, 4]), 4, 4), SERIES),
    "root mean square norm": (lambda: with_norm(nn.RMSNorm(4), 4, 4), SERIES),
    "instance norm": (lambda: with_norm(nn.InstanceNorm2d(2, affine=True), 50), PICTURE),
    "local response norm": (
        lambda: with_norm(nn.Sequential(nn.Conv2d(2, 2, 3), nn.LocalResponseNorm(2)), 18),
        PICTURE,
    ),
    "batch norm in evaluation": (lambda: with_norm(nn.BatchNorm2d(2), 50).eval(), PICTURE),
    "scale and shift": (
        lambda: Of(
            lambda m, x: m.last(torch.tanh(m.scale * x + m.shift)),
            scale=free(6),
            shift=free(1, 6),
            last=nn.Linear(6, 3),
        ),
        (6,),
    ),
    "a single scale": (
        lambda: Of(
            lambda m, x: m.a(x * m.s) / m.s, a=nn.Linear(6, 3), s=nn.Parameter(torch.tensor(1.5))
        ),
        (6,),
    ),
    "functions of single entries": (
        lambda: nn.Sequential(
            *(nn.Linear(6, 5), nn.LeakyReLU(), nn.Softplus(), nn.Mish(), nn.Hardswish()),
            *(nn.Hardtanh(), nn.Linear(5, 3)),
        ),
        (6,),
    ),
    "PReLU": (lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 3)), (6,)),
    "temperature": (
        lambda: Of(lambda m, x: torch.softmax(m.a(x) * m.t.exp(), 1), a=nn.Linear(6, 3), t=free(1)),
        (6,),
    ),
    # Sequences.
    "embedding": (lambda: head(nn.Embedding(5, 4), 28), TOKENS),
    "embedding with padding": (lambda: head(nn.Embedding(5, 4, padding_idx=2), 28), TOKENS),
    "embedding bag": (lambda: head(nn.EmbeddingBag(5, 4), 4), TOKENS),
    "tied embedding": (lambda: Of(tied_embedding, table=nn.Embedding(3, 4)), TOKENS),
    "LSTM": (
        lambda: Of(
            lambda m, x: m.last(m.lstm(x)[0][:, -1]),
            lstm=nn.LSTM(4, 5, **BATCH_FIRST),
            last=nn.Linear(5, 3),
        ),
        SERIES,
    ),
    "GRU": (
        lambda: Of(
            lambda m, x: m.last(m.gru(x)[0][:, -1]),
            gru=nn.GRU(4, 5, **BATCH_FIRST),
            last=nn.Linear(5, 3),
        ),
        SERIES,
    ),
    "GRU on packed sequences": (
        lambda: Of(packed, gru=nn.GRU(4, 5, **BATCH_FIRST), last=nn.Linear(5, 3)),
        SERIES,
    ),
    "a cell in a loop": (
        lambda: Of(cell_loop, cell=nn.GRUCell(4, 5), last=nn.Linear(5, 3)),
        SERIES,
    ),
    "attention": (
        lambda: Of(
            attention, mix=nn.MultiheadAttention(4, 2, **BATCH_FIRST), last=nn.Linear(16, 3)
        ),
        SERIES,
    ),
    "products of places": (
        lambda: Of(
            products_of_places,
            embed=nn.Linear(4, 4),
            norm=nn.LayerNorm(4),
            qkv=nn.Linear(4, 12),
            gate=nn.Linear(4, 4),
            last=nn.Linear(4, 3),
        ),
        SERIES,
    ),
    "fused attention": (
        lambda: Of(fused_attention, qkv=nn.Linear(4, 12), last=nn.Linear(16, 3)),
        SERIES,
    ),
    "transformer layer": (lambda: head(layer(**BATCH_FIRST), 16), SERIES),
    "transformer layer in evaluation": (lambda: head(layer(**BATCH_FIRST).eval(), 16), SERIES),
    "class token": (
        lambda: Of(
            class_token,
            token=free(1, 1, 4),
            embed=nn.Linear(4, 4),
            places=free(1, 5, 4),
            layer=layer(**BATCH_FIRST),
            last=nn.Linear(4, 3),
        ),
        SERIES,
    ),
    # What depends on the data, and what torch does in its own way.
    "mixture of experts": (
        lambda: Of(
            mixture, experts=nn.ModuleList(nn.Linear(6, 5) for _ in range(2)), last=nn.Linear(5, 3)
        ),
        (6,),
    ),
    "sorted samples": (lambda: Of(shuffled, linear=nn.Linear(6, 3)), (6,)),
    "a script": (scripted, (6,)),
    "a right function of its own": (
        lambda: Of(lambda m, x: m.b(Cube.apply(m.a(x))), a=nn.Linear(6, 5), b=nn.Linear(5, 3)),
        (6,),
    ),
    "a whole script": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))),
        (6,),
    ),
    "the gradient of an energy": (
        lambda: Of(energy, e=nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))),
        (6,),
    ),
    "a function with an index": (
        lambda: Of(
            lambda m, x: m.b(Largest.apply(m.a(x))[0]), a=nn.Linear(6, 5), b=nn.Linear(5, 3)
        ),
        (6,),
    ),
    "parameters without entries": (
        lambda: Of(
            lambda m, x: m.a(x) + x @ m.down.T @ m.up.T,
            unused=free(0),
            a=nn.Linear(6, 3),
            down=free(0, 6),
            up=free(3, 0),
        ),
        (6,),
    ),
    "stopped gradients": (
        lambda: Of(
            lambda m, x: m.b(m.a(x) * m.a(x).detach()), a=nn.Linear(6, 5), b=nn.Linear(5, 3)
        ),
        (6,),
    ),
}

REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "batch norm": (lambda: with_norm(nn.BatchNorm2d(2), 50), PICTURE, "BatchNorm2d '0' normalises"),
    "batch norm without statistics": (
        lambda: with_norm(nn.BatchNorm1d(4, track_running_stats=False), 16).eval(),
        SERIES,
        "BatchNorm1d '0'",
    ),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 3)), (6,), "Dropout '0' draws"),
    "random leaky ReLU": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.RReLU()),
        (6,),
        "RReLU '1' draws",
    ),
    "LSTM with dropout": (
        lambda: Of(
            lambda m, x: m.lstm(x)[0][:, -1], lstm=nn.LSTM(4, 3, 2, dropout=0.1, **BATCH_FIRST)
        ),
        SERIES,
        "LSTM 'lstm' draws",
    ),
    "the mean over samples": (
        lambda: Of(lambda m, x: m.a(x - x.mean(0)), a=nn.Linear(6, 3)),
        (6,),
        "depend on the other samples",
    ),
    "attention between samples": (
        lambda: Of(lambda m, x: m.mix(x, x, x)[0][:, :3], mix=nn.MultiheadAttention(6, 2)),
        (6,),
        "depend on the other samples",
    ),
    "complex parameters": (
        lambda: Of(
            lambda m, x: x @ m.w.real, w=nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))
        ),
        (6,),
        "parameter w is complex",
    ),
    "lazy": (lambda: nn.LazyLinear(3), (6,), "parameter weight has no shape"),
    "spectral norm in training": (
        lambda: head(parametrizations.spectral_norm(nn.Linear(6, 5)), 5),
        (6,),
        "a pass changes its buffers|two passes give different",
    ),
    "a hidden parameter": (hiding, (6,), "depend on parameter weight, but torch has no gradient"),
    "a hidden parameter that is also used": (
        half_hiding,
        (6,),
        "HiddenBackward is not the derivative",
    ),
    "a detached parameter": (
        lambda: Of(lambda m, x: m.a(x) * m.s.detach(), a=nn.Linear(6, 3), s=free(3)),
        (6,),
        "depend on parameter s",
    ),
    "embedding scaled by frequency": (
        lambda: head(nn.Embedding(5, 4, scale_grad_by_freq=True), 28),
        TOKENS,
        "derivatives are not right",
    ),
    "embedding with a largest norm": (
        lambda: head(nn.Embedding(5, 4, max_norm=0.5), 28),
        TOKENS,
        "max_norm",
    ),
    "sparse gradients": (
        lambda: head(nn.Embedding(5, 4, sparse=True), 28),
        TOKENS,
        "Embedding '0' gives sparse gradients",
    ),
    "gradients under no_grad": (
        lambda: Of(careless_energy, e=nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))),
        (6,),
        "fails under torch.no_grad",
    ),
    "autocast": (
        lambda: Of(lowered, a=nn.Linear(6, 5), b=nn.Linear(5, 3)),
        (6,),
        "compute in torch.bfloat16",
    ),
    "half precision inside": (
        lambda: Of(
            lambda m, x: m.b(m.a(x).half().to(x.dtype)), a=nn.Linear(6, 5), b=nn.Linear(5, 3)
        ),
        (6,),
        "compute in torch.float16",
    ),
    "a hook on a gradient": (
        hooked_parameter,
        (6,),
        "hook changes the gradient of parameter weight",
    ),
    "no gradient": (
        lambda: Of(lambda m, x: m.a(x).detach(), a=nn.Linear(6, 3)),
        (6,),
        "no gradient of its outputs",
    ),
    "a dictionary": (
        lambda: Of(lambda m, x: {"logits": m.a(x)}, a=nn.Linear(6, 3)),
        (6,),
        "got dict for one sample",
    ),
    "one number per sample": (
        lambda: Of(lambda m, x: m.a(x).squeeze(), a=nn.Linear(6, 1)),
        (6,),
        r"the shape \[\] for one sample",
    ),
    "checkpoint": (
        lambda: checkpointed(False),
        (6,),
        "not those for the parameters it is called with",
    ),
    "a reentrant checkpoint": (
        lambda: checkpointed(True),
        (6,),
        "not those for the parameters it is called with|no gradient",
    ),
}
