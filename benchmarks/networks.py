"""CPU seconds and memory of the exact kernels of the built-in networks, beside floors and `vmap(jacrev)`.

    python benchmarks/networks.py [--samples N ...] [--networks NAME ...] [--repetitions K] [--plain]
        [--memory-limit MIB] [--device cuda]

One thread, float32, random pictures of 28 x 28 pixels, ten classes. Seconds are the least of all
repetitions, because other jobs only add to them. The floor is the number of operations of the cheapest
exact form / the highest speed of a large product between the repetitions. The naive way is `vmap(jacrev)`
with one product. For more than 400 samples it takes one output after another, because its Jacobian needs
gigabytes. Memory is the growth of the process during one kernel, beside the prediction that `check` uses.
Before it, memory that the trial of the network has freed is given back, because the kernel would use it.
With `--plain` the allocator of the C library gives freed memory back to the system. `--memory-limit` has
the meaning of `compute.memory_limit`. On a GPU, seconds are of the wall clock, and memory is of tensors.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timing
import torch
from torch import nn

from mpi_ntkdfl.model.architectures.cnn import cnn
from mpi_ntkdfl.model.architectures.resnet import ResidualNet
from mpi_ntkdfl.model.architectures.starts import Start
from mpi_ntkdfl.model.architectures.transformer import Size, patches
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.runtime import allocator

SHAPE, CLASSES, AT_ONCE, WHOLE = (1, 28, 28), 10, 200, 400
NETWORKS = {
    "cnn": partial(cnn, SHAPE, (16, 32), 3, (64,), CLASSES),
    "resnet": partial(ResidualNet, 1, 1, 16, "group", CLASSES),
    "transformer": partial(patches, SHAPE, 4, Size(2, 4, 64), CLASSES),
}


def network_of(name: str, limit: int | None = None) -> ModuleNetwork:
    """The built-in network of that name; `limit` is `compute.memory_limit` in MiB."""
    network = ModuleNetwork(Start(NETWORKS[name], "kaiming"), SHAPE, CLASSES, name)
    return network if limit is None else network.within(limit * 2**18)


def operations(network: ModuleNetwork, samples: int) -> float:
    """Operations of the cheapest exact form: passes, gradients of layers, half of the products."""
    layers: list[tuple[int, int, int]] = []

    def seen(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        fan_in = weight[0].numel()
        layers.append((output.numel() // len(weight), fan_in, len(weight)))

    module = network.module
    hooks = [
        layer.register_forward_hook(seen)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        module(torch.zeros(1, *SHAPE))
    for hook in hooks:
        hook.remove()
    of_layers = sum(places * fan_in * units for places, fan_in, units in layers)
    others = network.work.products - of_layers
    first = layers[0][0] * layers[0][1] * layers[0][2]
    forward = 2.0 * samples * network.work.products
    backward = 2.0 * samples * CLASSES * (of_layers - first + 2 * others)
    total = forward + backward
    for places, fan_in, units in layers:
        entries = CLASSES * fan_in * units
        multiplied = 2.0 * samples * places * entries + samples**2 * entries
        pairs = 1.0 * samples**2 * places**2 * (fan_in + CLASSES * units)
        total += min(multiplied, pairs)
    return total


def naive(network: ModuleNetwork, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The kernel by `vmap(jacrev)`."""
    module = network.module
    tensors = network.layout.unflatten(params)

    def outputs(chosen: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, chosen, (x[None],))[0]

    if len(inputs) <= WHOLE:
        found = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(tensors, inputs)
        entries = torch.cat([each.flatten(2) for each in found.values()], 2).flatten(1)
        return entries @ entries.T
    total = inputs.new_zeros(len(inputs), len(inputs))
    for output in range(CLASSES):
        gradient = torch.func.grad(lambda chosen, x, c=output: outputs(chosen, x)[c])
        parts = []
        for some in inputs.split(AT_ONCE):
            found = torch.func.vmap(gradient, (None, 0))(tensors, some)
            parts.append(torch.cat([each.flatten(1) for each in found.values()], 1))
        entries = torch.cat(parts)
        total += entries @ entries.T
    return total


def status(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak_of(given: argparse.Namespace, name: str, samples: int) -> int:
    """By how many bytes one kernel makes this process, or the GPU's memory, grow at most."""
    network = network_of(name, given.memory_limit)
    inputs = torch.randn(samples, *SHAPE, device=given.device)
    params = network.own_parameters().to(inputs)
    network.jacobian(params, inputs[:8]).trace_gram()
    if given.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        network.jacobian(params, inputs).trace_gram()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    network.jacobian(params, inputs).trace_gram()
    return status("VmHWM") - before


def seconds(task: Callable[[], object], device: str) -> float:
    """CPU seconds of a task, or wall-clock seconds on a GPU."""
    if device == "cpu":
        start = time.process_time()
        task()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    task()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def product_peak(device: str) -> float:
    """Operations per second of a large float32 product."""
    if device == "cpu":
        return timing.product_peak()
    a = torch.ones(8192, 8192, device=device)
    return 2 * 8192**3 / min(seconds(lambda: a @ a, device) for _ in range(5))


def row(given: argparse.Namespace, name: str, samples: int) -> list[str]:
    """One line of the table."""
    network = network_of(name, given.memory_limit)
    inputs = torch.randn(samples, *SHAPE, device=given.device)
    params = network.own_parameters().to(inputs)
    kernel, reference = [], []
    few = 1 if samples > WHOLE else given.repetitions
    network.jacobian(params, inputs[:64]).trace_gram()
    peak = 0.0
    for turn in range(given.repetitions):
        peak = max(peak, product_peak(given.device))
        kernel.append(seconds(network.jacobian(params, inputs).trace_gram, given.device))
        if turn < few:
            reference.append(seconds(lambda: naive(network, params, inputs), given.device))
    ours, theirs = min(kernel), min(reference)
    norm = None
    if samples <= WHOLE:
        wanted = naive(network, params, inputs)
        norm = float(
            (network.jacobian(params, inputs).trace_gram() - wanted).norm() / wanted.norm()
        )
    floor = operations(network, samples) / peak
    words = [sys.executable, *sys.argv, "--peak", name, str(samples)]
    grown = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    said = 4 * (network.memory(samples) + samples**2)
    return [
        name,
        str(samples),
        f"{network.layout.size:,}",
        f"{peak / 1e9:.0f}",
        f"{floor:.3g}",
        f"{ours:.3g}",
        f"{ours / floor:.2f}",
        f"{theirs:.3g}",
        f"{theirs / ours:.1f}",
        f"{grown / 2**20:.0f}",
        f"{said / 2**20:.0f}",
        "" if norm is None else f"{norm:.0e}",
    ]


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 1184])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="leave malloc as it is")
    parser.add_argument("--memory-limit", type=int, help="MiB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not given.plain:
        allocator.keep_memory()
    if given.peak:
        print(peak_of(given, given.peak[0], int(given.peak[1])))
        return
    rows = [row(given, name, samples) for samples in given.samples for name in given.networks]
    timing.print_table(
        (
            *(
                "network",
                "N",
                "P",
                "G/s",
                "floor s",
                "kernel s",
                "/ floor",
                "vmap(jacrev) s",
                "/ kernel",
            ),
            *("MiB", "predicted MiB", "difference"),
        ),
        rows,
    )


if __name__ == "__main__":
    main()
