"""Local training for methods: all clients of a rank take gradient steps on their own batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mpi_ntkdfl.algorithms.aids import calibration_shift
from mpi_ntkdfl.algorithms.base import may_diverge, not_finite
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.training import Orders, Pack, Rule, Sgd
from mpi_ntkdfl.ntk.evolve import Implementation
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError


def choose(
    wanted: str, network: Network, device: torch.device, dtype: torch.dtype
) -> tuple[Implementation, str]:
    """Decides which version takes local steps by SGD on this rank.

    Args:
        wanted: the setting `compute.training`: auto, compiled or tensor.
        network: the network.
        device: of the run.
        dtype: of the run.

    Returns:
        The version and the reason.

    Raises:
        InputError: if `compiled` is wanted and cannot be used here.
    """
    if wanted == "tensor":
        return "tensor", "compute.training is tensor"
    choice = network.compiled_training(device, dtype)
    if wanted == "compiled" and not choice.taken:
        raise InputError(
            f"compute.training=compiled cannot be used: {choice.reason}; use auto or tensor"
        )
    return "compiled" if choice.taken else "tensor", choice.reason


class LocalTraining:
    """Local steps of all clients of a rank.

    A local pass takes a client's samples in a random order, in batches; the last batch may be smaller.
    Orders depend on seed, client and round.
    """

    def __init__(
        self, federation: Federation, batch: int, epochs: int, calibration: float = 0.0
    ) -> None:
        """Prepares the network's trainer.

        Args:
            federation: the clients.
            batch: samples per step.
            epochs: local passes per round.
            calibration: how far the loss is calibrated to the client's labels; `aids.calibration_shift`.
        """
        self._federation, self._epochs = federation, epochs
        own = [federation.samples[client] for client in federation.owned]
        data = [(samples.inputs, samples.labels) for samples in own]
        network, dtype = federation.network, federation.dtype
        shifts = [
            shift
            for samples in own
            if (shift := calibration_shift(samples.labels, network.classes, calibration, dtype))
            is not None
        ]
        compiled = federation.training == "compiled"
        self.trainer = network.trainer(data, batch, epochs, shifts, compiled)

    def descend(self, weights: torch.Tensor, number: int, sgd: Sgd) -> torch.Tensor:
        """A round's local steps by SGD; velocities start at zero.

        Args:
            weights: the weights of this rank's clients, `[owned, param]`.
            number: number of the round, from 0.
            sgd: learning rate, momentum and weight decay.

        Returns:
            The trained weights, `[owned, param]`.

        Raises:
            Diverged: if weights become non-finite; the error names client and round.
        """
        with self._federation.clock("train"):
            trained = self.trainer.descend(weights, self._orders(number), sgd)
        return self._finite(weights, trained, number)

    def follow(
        self, weights: torch.Tensor, number: int, rule: Callable[[Pack], Rule]
    ) -> torch.Tensor:
        """A round's local steps by any rule; otherwise like `descend`.

        Args:
            weights: the weights of this rank's clients, `[owned, param]`.
            number: number of the round, from 0.
            rule: function that makes the rule of a group of clients. Its argument is a function that
                turns an array `[owned, param]` into the parameter arrays `[client, ...]` of the group.
        """
        with self._federation.clock("train"):
            trained = self.trainer.follow(weights, self._orders(number), rule)
        return self._finite(weights, trained, number)

    def _orders(self, number: int) -> Orders:
        """The orders of samples in round `number`, by the position of a client on its rank."""
        f = self._federation

        def orders(place: int) -> np.ndarray:
            client = f.owned.start + place
            passes = np.tile(np.arange(int(f.sizes[client])), (self._epochs, 1))
            return seeds.generator(f.seed, "batches", client, number).permuted(passes, axis=1)

        return orders

    def _finite(self, before: torch.Tensor, trained: torch.Tensor, number: int) -> torch.Tensor:
        """Reports clients with non-finite weights; with `continue` they keep the weights from before."""
        f = self._federation
        finite = torch.isfinite(trained).all(dim=1).tolist()
        for client, old, row, fine in zip(f.owned, before, trained, finite, strict=True):
            with may_diverge(f, number, client):
                if not fine:
                    row.copy_(old)
                    raise not_finite("lower algorithm.lr or algorithm.momentum")
        return trained
