"""Where a rank computes: the one place that names devices; everything else is told.

A rank uses one device. Code that differs between CPU and GPU asks `on_gpu`.
"""

from __future__ import annotations

import torch

from mpi_ntkdfl.runtime.errors import InputError

HOST = torch.device("cpu")
"""Where files are read, whatever the device."""


def visible_gpus() -> int:
    """GPUs this process may use; the batch system may show each rank its own only."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank: `auto` and `cuda` deal the visible GPUs out by local rank.

    With as many ranks on a node as GPUs each has one of its own, with more they share, and where a rank
    sees a single GPU it takes that.

    Args:
        wanted: auto, cpu, cuda or cuda:N.
        local_rank: number of this rank on its node.

    Raises:
        InputError: if a GPU is asked for and this rank sees none, or none of that number.
    """
    found = visible_gpus()
    if wanted == "cpu" or (wanted == "auto" and not found):
        return HOST
    index = int(wanted.removeprefix("cuda:")) if ":" in wanted else local_rank % max(found, 1)
    if index >= found:
        raise InputError(
            f"compute.device {wanted} needs a CUDA device on every rank, this one sees {found}; "
            "use compute.device=cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index)


def on_gpu(device: torch.device) -> bool:
    """Whether `device` is a GPU."""
    return device.type == "cuda"


def use(device: torch.device, threads: int) -> None:
    """Sets this process up to compute on `device`.

    Args:
        device: of this rank.
        threads: of the operations on the host.
    """
    torch.set_num_threads(threads)
    # TF32 would keep 10 bits of the mantissa, too few for the kernel. No operation here is cuDNN's.
    torch.set_float32_matmul_precision("highest")
    if on_gpu(device):
        # Libraries that use "the current device" would else take memory of GPU 0 for every rank.
        torch.cuda.set_device(device)


def free_share(device: torch.device, ranks: int) -> int:
    """Bytes of a GPU that a rank may fill: half of its share of what is free; 0 on CPU.

    Args:
        device: of the rank.
        ranks: on its node, which share the GPUs.
    """
    if not on_gpu(device):
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free // (2 * -(-ranks // visible_gpus()))
