"""The sections of a configuration, beside those that belong to one method, network or data set.

Every setting declares what it affects (`affects`; the result if nothing is declared), and every number
has a bound.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mpi_ntkdfl.runtime.settings import Section, affects, readable_by
from mpi_ntkdfl.runtime.units import parse_bytes, parse_seconds

MOST_CLIENTS = 1_000_000
MOST_ROUNDS = 10_000_000
MOST_SAMPLES = 2**31 - 1
"""Of a client or a batch."""

# ---------------------------------------------------------------------------------------- data set


class DatasetSettings(Section):
    """Base of the settings of all data sets: which samples exist.

    `train_as_test: true` accepts a test set that holds only training samples. Otherwise it is refused,
    because the test accuracy would be the training accuracy.
    """

    name: str
    train_as_test: bool = affects("nothing", default=False)


# --------------------------------------------------------------------------------------- partition


class IidPartition(Section):
    """Equal disjoint random shares."""

    kind: Literal["iid"]


class DirichletPartition(Section):
    """Class proportions from Dir(alpha); `samples` per client (default: training samples / clients)."""

    kind: Literal["dirichlet"]
    alpha: float = Field(default=0.1, gt=0, le=1e9)
    samples: int | None = Field(default=None, ge=1, le=MOST_SAMPLES)


class ShardsPartition(Section):
    """Samples sorted by label, cut into `clients * per_client` shards, dealt at random."""

    kind: Literal["shards"]
    per_client: int = Field(default=2, ge=1, le=MOST_CLIENTS)


class WriterPartition(Section):
    """One client per writer, for data sets that know their writers (femnist)."""

    kind: Literal["writer"]


class FilePartition(Section):
    """Partition read from an npz file with `offsets [M+1]` and `indices`."""

    kind: Literal["file"]
    path: str = affects("place")


Partition = Annotated[
    IidPartition | DirichletPartition | ShardsPartition | WriterPartition | FilePartition,
    Field(discriminator="kind"),
]

# ---------------------------------------------------------------------------------------- topology


class RegularTopology(Section):
    """Random `degree`-regular graph."""

    kind: Literal["regular"]
    degree: int = Field(default=5, ge=1, le=MOST_CLIENTS)
    dynamic: bool = True


class RingTopology(Section):
    """Client i is beside i-1 and i+1; if dynamic, clients change seats every round."""

    kind: Literal["ring"]
    dynamic: bool = False


class CompleteTopology(Section):
    """All clients are neighbours of each other."""

    kind: Literal["complete"]
    dynamic: bool = False


class StarTopology(Section):
    """Client 0 is in the centre; if dynamic, clients change seats every round."""

    kind: Literal["star"]
    dynamic: bool = False


class GridTopology(Section):
    """Two-dimensional grid, as square as the number of clients allows."""

    kind: Literal["grid"]
    dynamic: bool = False


class ErdosRenyiTopology(Section):
    """Every edge with probability `p`."""

    kind: Literal["erdos-renyi"]
    p: float = Field(default=0.05, gt=0, le=1)
    dynamic: bool = True


class SmallWorldTopology(Section):
    """Watts-Strogatz: a ring of `degree` nearest neighbours, each edge rewired with probability `p`."""

    kind: Literal["small-world"]
    degree: int = Field(default=4, ge=2, le=MOST_CLIENTS)
    p: float = Field(default=0.1, ge=0, le=1)
    dynamic: bool = True


class FileTopology(Section):
    """Graph from an edge list or a GraphML file, nodes 0 to M-1."""

    kind: Literal["file"]
    path: str = affects("place")
    dynamic: bool = False


Topology = Annotated[
    RegularTopology
    | RingTopology
    | CompleteTopology
    | StarTopology
    | GridTopology
    | ErdosRenyiTopology
    | SmallWorldTopology
    | FileTopology,
    Field(discriminator="kind"),
]

# --------------------------------------------------------------------------- model, method, machine


class ModelSettings(Section):
    """Base of the settings of all networks; a subclass narrows `name` to its own.

    `weights` is a torch state_dict (.pt) that every client starts from.

    Attributes:
        factored: whether the networks have a factored form of their Jacobians.
    """

    factored: ClassVar[bool] = False

    name: str
    init: Literal["shared", "per-client"] = "shared"
    weights: str | None = affects("place", default=None)


class MethodSettings(Section):
    """Base of the settings of all methods; a subclass narrows `name` to its own."""

    name: str

    @classmethod
    def defaults(cls, model: ModelSettings) -> dict[str, Any]:
        """Defaults that depend on the network, for settings that are not given."""
        return {}


class EvaluationSettings(Section):
    """When to evaluate: after every `every` rounds and the last; `clients`: each client's model too."""

    every: int = affects("extent", default=1, ge=1, le=MOST_ROUNDS)
    clients: bool = affects("extent", default=True)


class OutputSettings(Section):
    """Checkpoints and the run's wall-clock time.

    A checkpoint is written after every `checkpoint_every` rounds, whenever `checkpoint_minutes` have
    passed since the last one, and at the end. The run stops with a checkpoint before a round that
    would not fit into `time_limit` (seconds, or text such as "90m", "1.5h", "1:30:00", "2-12:00:00").
    With `trace` RUN.trace.json tells what every rank did when.
    """

    checkpoint_every: int = affects("nothing", default=1, ge=1, le=MOST_ROUNDS)
    checkpoint_minutes: float | None = affects("nothing", default=None, gt=0, le=1e6)
    time_limit: Annotated[
        int | float | str | None,
        readable_by(
            parse_seconds,
            10 * 365 * 86400,
            "a positive number of seconds up to ten years, or text such as "
            '"90m", "1.5h", "1:30:00" or "2-12:00:00"',
        ),
    ] = affects("nothing", default=None)
    trace: bool = affects("nothing", default=False)

    @property
    def seconds(self) -> float | None:
        """`time_limit` in seconds, None for no limit."""
        return None if self.time_limit is None else parse_seconds(self.time_limit)


class ComputeSettings(Section):
    """Where and how precisely; `threads`, `memory_limit` (bytes, or text as "2GB"), `batch` are per rank.

    `batch` clients evolve together; null is one on CPU, and as many as fit on a GPU. Above one, the
    last bits depend on which clients share a rank.

    `byte_products`: images of bytes are multiplied as bytes where that is exact and faster (`auto`),
    always (`on`) or never (`off`).

    `evolution`: which version integrates the outputs of NTK methods under the cross-entropy loss, the
    compiled one for CPUs or the tensor one. `auto` takes the compiled one where all ranks have it and
    compute on a CPU.

    `gpu_aware_mpi`: MPI gets messages in the GPU's memory and not in host memory; MPI must be built
    with CUDA support.

    `timeout`: how long ranks wait for one from which nothing is heard (seconds, or text such as
    "10min"); null for no limit.
    """

    device: str = affects("rounding", default="auto")
    dtype: Literal["float32", "float64"] = "float32"
    threads: int = affects("rounding", default=1, ge=1, le=4096)
    memory_limit: Annotated[
        int | str | None,
        readable_by(
            parse_bytes,
            2**50,
            'a positive whole number of bytes up to 2^50, or text such as "2GB" or "512MiB"',
        ),
    ] = affects("rounding", default=None)
    batch: int | None = affects("rounding", default=None, ge=1, le=MOST_CLIENTS)
    byte_products: Literal["auto", "on", "off"] = affects("rounding", default="auto")
    evolution: Literal["auto", "compiled", "tensor"] = affects("rounding", default="auto")
    gpu_aware_mpi: bool = affects("nothing", default=False)
    timeout: Annotated[
        int | float | str | None,
        readable_by(
            parse_seconds,
            30 * 86400,
            'a number of seconds up to 30 days, or text such as "10min" or "1h", or null',
        ),
    ] = affects("nothing", default="10min")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

    @field_validator("byte_products", mode="before")
    @classmethod
    def _yaml_word(cls, value: object) -> object:
        # YAML 1.1 reads the words on and off as true and false.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes, None for no limit."""
        return None if self.memory_limit is None else parse_bytes(self.memory_limit)

    @property
    def patience(self) -> float | None:
        """`timeout` in seconds, None for no limit."""
        return None if self.timeout is None else parse_seconds(self.timeout)
