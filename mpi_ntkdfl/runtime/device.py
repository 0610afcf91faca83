"""Where a rank computes. Only this module names devices; all other code is given its device.

A rank uses one device. Code that differs between CPU and GPU asks `on_gpu`.
"""

from __future__ import annotations

import torch

from mpi_ntkdfl.runtime.errors import InputError

HOST = torch.device("cpu")
"""The device into which files are read, whatever the rank's device is."""


def visible_gpus() -> int:
    """Number of GPUs this process may use; a batch system may show each rank only its own GPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank. With `auto` and `cuda` the local rank selects one of the visible GPUs.

    If a node has as many ranks as GPUs, each rank has its own GPU. If it has more ranks, they share the
    GPUs. A rank that sees a single GPU takes that one.

    Args:
        wanted: auto, cpu, cuda or cuda:N.
        local_rank: number of this rank on its node.

    Raises:
        InputError: if a GPU is asked for and this rank sees none, or none of that number.
    """
    visible = visible_gpus()
    if wanted == "cpu" or (wanted == "auto" and not visible):
        return HOST
    index = int(wanted.removeprefix("cuda:")) if ":" in wanted else local_rank % max(visible, 1)
    if index >= visible:
        raise InputError(
            f"compute.device {wanted} needs a CUDA device on every rank, this one sees {visible}; "
            "use compute.device=cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index)


def on_gpu(device: torch.device) -> bool:
    """Whether `device` is a GPU."""
    return device.type == "cuda"


def random_state(device: torch.device) -> bytes:
    """The state of a GPU's random generator; empty for a CPU, which has torch's own generator."""
    return torch.cuda.get_rng_state(device).numpy().tobytes() if on_gpu(device) else b""


def use(device: torch.device, threads: int) -> None:
    """Sets this process up to compute on `device`.

    Args:
        device: the device of this rank.
        threads: number of threads for operations on the host.
    """
    torch.set_num_threads(threads)
    # TF32 would keep only 10 bits of the mantissa, which are too few for the kernel. cuDNN has a
    # setting of its own, which does not matter, because the package uses no operation of cuDNN.
    torch.set_float32_matmul_precision("highest")
    if on_gpu(device):
        # Otherwise libraries that use "the current device" would take memory of GPU 0 for every rank.
        torch.cuda.set_device(device)


def free_share(device: torch.device, ranks: int) -> int:
    """Bytes of a GPU that a rank may fill: half of its share of what is free; 0 on CPU.

    Args:
        device: the device of the rank.
        ranks: number of ranks on its node; they share the GPUs.
    """
    if not on_gpu(device):
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free // (2 * -(-ranks // visible_gpus()))
