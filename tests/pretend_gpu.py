"""A GPU for machines without one: tensors that say they are on it, and refuse what a GPU refuses.

They lie in host memory and are computed there. What is held to is where operands are: arrays meet only
on one device, `numpy()` needs a copy on the host, memory made without a device is the host's. What makes
the host wait for the device is counted by the line of the package that asked for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
_HOST = torch.device("cpu")
_WAITING = {
    "item",
    "tolist",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "cpu",
    "bincount",
} | {
    "nonzero",
    "masked_select",
    "new_tensor",
}


class FakeCopies:
    """A `CopyStream` whose copies to the host happen no sooner than somebody waits for them.

    Attributes:
        count: copies in either direction.
    """

    def __init__(self, device: torch.device = GPU) -> None:
        self._device = device
        self._started: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.count = 0

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0xEE, dtype=torch.uint8)

    def to_host(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self._started.append((source, target))

    def wait(self) -> None:
        for source, target in self._started:
            target.copy_(source)
        self.count += len(self._started)
        self._started.clear()

    def to_device(self, source: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return source.clone().to(self._device)


def pretended(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the pretended GPU."""
    return "on_gpu" in tensor.__dict__


class PretendGpu(TorchFunctionMode):
    """While active, `device="cuda"` works. See the module's head.

    Attributes:
        waits: how often the host waited for the device, by function and line of the package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__
        if name == "__get__":
            return self._property(func, args)
        if name == "__set__":
            return func(*args, **kwargs)
        operands = list(_tensors((args, kwargs)))
        there = any(pretended(t) for t in operands)
        if there and name in ("numpy", "__array__"):
            raise TypeError(f"can't convert a GPU's tensor to numpy at {_caller()}")
        if there and (name in _WAITING or _by_mask(name, args)):
            self.waits[f"{name} {_caller()}"] += 1
        if name in ("to", "cpu"):
            return self._moved(func, args, kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            there = torch.device(asked).type == GPU.type
            kwargs["device"] = _HOST
        elif name != "copy_" and len({pretended(t) for t in operands if t.dim()}) == 2:
            raise RuntimeError(f"{name}: operands on two devices at {_caller()}")
        elif name == "copy_":
            there = pretended(args[0])
            if there != pretended(args[1]):
                self.waits[f"copy_ {_caller()}"] += 1
        return _marked(func(*args, **kwargs), there)

    def _property(self, func: Any, args: tuple[Any, ...]) -> Any:
        of, found = args[0], func(*args)
        if isinstance(found, torch.device):
            return GPU if pretended(of) else found
        return _marked(found, isinstance(of, torch.Tensor) and pretended(of))

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        of, where = args[0], pretended(args[0])
        said = [*args[1:], *kwargs.values()]
        if func.__name__ == "cpu":
            where = False
        for each in said:
            if isinstance(each, torch.device | str):
                where = torch.device(each).type == GPU.type
            elif isinstance(each, torch.Tensor):
                where = pretended(each)
        if where != pretended(of) and func.__name__ == "to":
            self.waits[f"to {_caller()}"] += 1
        kinds = [each for each in said if isinstance(each, torch.dtype)]
        kinds += [each.dtype for each in said if isinstance(each, torch.Tensor)]
        result = of.type(kinds[0]) if kinds else of
        if result is of and where != pretended(of):
            result = of.clone()  # without the mark
        return _marked(result, where)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (each for each in tree_flatten(tree)[0] if isinstance(each, torch.Tensor))


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a mask is turned into indices, whose number the host must know."""
    if name not in ("__getitem__", "__setitem__"):
        return False
    return any(each.dtype == torch.bool for each in _tensors(args[1]))


def _marked(result: Any, there: bool) -> Any:
    def mark(each: Any) -> Any:
        if there and isinstance(each, torch.Tensor):
            each.__dict__["on_gpu"] = True
        return each

    return tree_map(mark, result)


def _caller() -> str:
    """The line of the package that is running, as `folder/file.py:line`."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if "mpi_ntkdfl/" in path:
            return f"{path.rsplit('mpi_ntkdfl/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"
