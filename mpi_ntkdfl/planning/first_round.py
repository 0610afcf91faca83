"""The input of planning: a run's configuration, and the clients, the graph and the ranks of round 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.algorithms.base import Method, Needs
from mpi_ntkdfl.algorithms.coded import CodedSettings
from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.config import Config, MethodSettings
from mpi_ntkdfl.federation.codecs import CodecChoice
from mpi_ntkdfl.federation.coding import kept_bytes, vector_format
from mpi_ntkdfl.federation.formats import samples_format
from mpi_ntkdfl.federation.jacobian_coding import JacobianCoding
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement


@dataclass(frozen=True)
class FirstRound:
    """Round 0 of a run, from which the costs of all rounds are predicted.

    Attributes:
        config: configuration of the run.
        method: the class of its method.
        network: the model of every client.
        sizes: number of samples of each client, `[client]`.
        test_samples: number of samples in the test set.
        graph: the graph of round 0.
        placement: which rank owns which client.
        stored_bytes: whether the data set stores inputs as bytes.
    """

    config: Config
    method: type[Method[Any]]
    network: Network
    sizes: np.ndarray
    test_samples: int
    graph: Graph
    placement: Placement
    stored_bytes: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of weights and data."""
        dtype: torch.dtype = getattr(torch, self.config.compute.dtype)
        return dtype

    @cached_property
    def needs(self) -> Needs:
        """What a round of the method sends and keeps."""
        return self.method.needs(self.config.algorithm, self.network, self.dtype)

    @cached_property
    def blocks(self) -> tuple[MessageFormat, ...]:
        """The layouts, per sample, of the messages about a client's samples."""
        travelling = torch.uint8 if self.stored_bytes else self.dtype
        return coded_blocks(self.needs, self.config.algorithm, self.network, travelling)

    @cached_property
    def rows(self) -> np.ndarray:
        """Of how many samples each client sends such messages, `[client]`."""
        return coded_rows(self.config.algorithm, self.sizes)

    @property
    def codec_bytes(self) -> int:
        """Bytes that codecs keep per client from round to round."""
        choice = codecs_of(self.config.algorithm)
        if choice is None:
            return 0
        shapes = self.method.coded_shapes(self.config.algorithm, self.network)
        nodes = 1 if self.needs.central else self.config.clients
        return kept_bytes(choice, self.needs.sent_vectors, shapes, self.dtype, nodes)

    def vector(self, phase: str, later: bool = False) -> MessageFormat:
        """The layout of the message with a parameter vector, in round 0 or in a `later` one."""
        shapes = self.method.coded_shapes(self.config.algorithm, self.network)
        shared = self.config.model.init == "shared"
        lasting = not self.config.topology.dynamic and self.config.environment is None
        whole = not (lasting if later else shared)
        return vector_format(codecs_of(self.config.algorithm), phase, shapes, self.dtype, whole)


def codecs_of(settings: MethodSettings) -> CodecChoice | None:
    """The codecs that a method's settings choose."""
    return settings.codecs if isinstance(settings, CodedSettings) else None


def coded_blocks(
    needs: Needs, settings: MethodSettings, network: Network, travelling: torch.dtype
) -> tuple[MessageFormat, ...]:
    """The layouts, per sample, in which messages about samples travel.

    Args:
        needs: what the method sends.
        settings: of the method.
        network: the model of every client.
        travelling: type of raw inputs in messages.
    """
    blocks = (samples_format(network, travelling),) if needs.samples else needs.blocks
    codec = _jacobian_coding(settings)
    return blocks if codec is None else tuple(map(codec.form, blocks))


def coded_rows(settings: MethodSettings, sizes: np.ndarray) -> np.ndarray:
    """Of how many samples each client sends messages, `[client]`, given how many it has."""
    codec = _jacobian_coding(settings)
    return sizes if codec is None else codec.rows(sizes)


def _jacobian_coding(settings: MethodSettings) -> JacobianCoding | None:
    choice = codecs_of(settings)
    if choice is None or choice.jacobians is None:
        return None
    return JacobianCoding(choice.jacobians, 0)
