"""What passes leave behind: a module's own attributes, and the states of random generators.

Many modules keep something of a pass as an attribute: features, attention weights, a counter, a cache, or
weights that an older parametrisation computes before each pass. Such tensors belong to a trial, or to a
transform of `torch.func` that has ended, and nobody can use them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.runtime.device import on_gpu, random_state

_STANDARD = frozenset(vars(torch.nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
"""Attributes of every module which passes do not change."""

_ABSENT = object()


@contextmanager
def restored(module: torch.nn.Module) -> Iterator[None]:
    """After the context, all parts of a module have the attributes that they had, with their contents."""
    before = [
        (part, {name: _kept(value) for name, value in _own(part).items()})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, kept in before:
            space = vars(part)
            for name in _own(part).keys() - kept.keys():
                del space[name]
            for name, (value, contents) in kept.items():
                if space.get(name, _ABSENT) is not value:
                    space[name] = value
                if isinstance(contents, list):
                    value[:] = contents
                elif contents is not None:
                    value.clear()
                    value.update(contents)


def _own(part: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _STANDARD}


def _kept(value: Any) -> tuple[Any, Any]:
    """A value, and a copy of it if it is a container whose contents a pass could change."""
    return value, value.copy() if type(value) in (list, dict, set) else None


def random_states(device: torch.device) -> tuple[Any, ...]:
    """The states of all random generators that a module could draw from, for comparison."""
    own = torch.get_rng_state().numpy().tobytes()
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002
    words = numbers["state"]["key"].tobytes(), numbers["state"]["pos"], numbers["has_gauss"]
    return own, random_state(device), random.getstate(), words


@contextmanager
def same_random_states(device: torch.device) -> Iterator[None]:
    """After the context, all random generators have the states that they had before."""
    plain, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if on_gpu(device) else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)  # noqa: NPY002
