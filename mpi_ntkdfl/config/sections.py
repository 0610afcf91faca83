"""The sections of a configuration, without those that belong to one method, network or data set.

Every setting declares what it affects by `affects`; a setting that declares nothing affects the result.
Every number has a bound.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mpi_ntkdfl.runtime.metric import clients_tested
from mpi_ntkdfl.runtime.settings import Section, affects, readable_by
from mpi_ntkdfl.runtime.units import parse_bytes, parse_seconds

MOST_CLIENTS = 1_000_000
MOST_ROUNDS = 10_000_000
MOST_SAMPLES = 2**31 - 1
"""The largest number of samples of a client or a batch."""

# ---------------------------------------------------------------------------------------- data set


class DatasetSettings(Section):
    """Base of the settings of all data sets. A data set says which samples exist."""

    name: str
    train_as_test: bool = affects("nothing", default=False)
    """Whether the test set may hold only training samples. Otherwise such a set is refused, because the
    test accuracy would be the training accuracy.
    """


# --------------------------------------------------------------------------------------- partition


class IidPartition(Section):
    """Equal disjoint random shares."""

    kind: Literal["iid"]


class DirichletPartition(Section):
    """Each client draws its class proportions from Dir(alpha); the shares of two clients may overlap."""

    kind: Literal["dirichlet"]
    alpha: float = Field(default=0.1, gt=0, le=1e9)
    """Concentration of the Dirichlet distribution. Small values give each client few classes; large
    values give all clients the same mixture.
    """
    samples: int | None = Field(default=None, ge=1, le=MOST_SAMPLES)
    """Samples per client; counts per class are rounded down. Null: training samples / clients."""


class ShardsPartition(Section):
    """Samples are sorted by label and cut into `clients * per_client` shards, dealt at random."""

    kind: Literal["shards"]
    per_client: int = Field(default=2, ge=1, le=MOST_CLIENTS)
    """Shards per client."""


class WriterPartition(Section):
    """One client per writer; the name of the site partition for femnist."""

    kind: Literal["writer"]


class SitePartition(Section):
    """Natural groups, such as hospitals, writers or roles: each site has its own clients."""

    kind: Literal["site"]
    min_samples: int = Field(default=1, ge=1, le=MOST_SAMPLES)
    """The fewest training samples of a client."""
    too_small: Literal["refuse", "drop"] = "refuse"
    """What happens to a client with fewer samples: the run is refused, or the client is left out."""
    per_site: int = Field(default=1, ge=1, le=MOST_CLIENTS)
    """Clients per site."""
    within: (
        Annotated[IidPartition | DirichletPartition | ShardsPartition, Field(discriminator="kind")]
        | None
    ) = None
    """How the samples of a site are divided among its clients: a partition of kind iid, dirichlet or
    shards. Null: iid.
    """


class FilePartition(Section):
    """A partition that is read from an npz file with `offsets [M+1]` and `indices`."""

    kind: Literal["file"]
    path: str = affects("place")
    """An .npz file with the arrays `offsets` [M+1] and `indices`: client i holds the training
    samples `indices[offsets[i]:offsets[i+1]]`.
    """


Partition = Annotated[
    IidPartition
    | DirichletPartition
    | ShardsPartition
    | WriterPartition
    | SitePartition
    | FilePartition,
    Field(discriminator="kind"),
]

# ---------------------------------------------------------------------------------------- topology


class RegularTopology(Section):
    """Random `degree`-regular graph."""

    kind: Literal["regular"]
    degree: int = Field(default=5, ge=1, le=MOST_CLIENTS)
    """Neighbours per client."""
    dynamic: bool = True
    """Whether there is a new random graph in every round."""


class RingTopology(Section):
    """A ring: client i has the neighbours i-1 and i+1. If dynamic, places are shuffled every round."""

    kind: Literal["ring"]
    dynamic: bool = False
    """Whether clients change places in every round."""


class CompleteTopology(Section):
    """All clients are neighbours of each other."""

    kind: Literal["complete"]
    dynamic: bool = False
    """Whether clients change places in every round, which changes nothing in a complete graph."""


class StarTopology(Section):
    """A star with client 0 in the centre. If dynamic, places are shuffled every round."""

    kind: Literal["star"]
    dynamic: bool = False
    """Whether clients change places in every round."""


class GridTopology(Section):
    """A grid of two dimensions, as square as the number of clients allows."""

    kind: Literal["grid"]
    dynamic: bool = False
    """Whether clients change places in every round."""


class ErdosRenyiTopology(Section):
    """A random graph in which every edge exists with probability `p`."""

    kind: Literal["erdos-renyi"]
    p: float = Field(default=0.05, gt=0, le=1)
    """Probability of every edge."""
    dynamic: bool = True
    """Whether there is a new random graph in every round."""


class SmallWorldTopology(Section):
    """Watts-Strogatz: a ring of `degree` nearest neighbours, each edge rewired with probability `p`."""

    kind: Literal["small-world"]
    degree: int = Field(default=4, ge=2, le=MOST_CLIENTS)
    """Neighbours per client on the ring, an even number."""
    p: float = Field(default=0.1, ge=0, le=1)
    """Probability that an edge gets a new end."""
    dynamic: bool = True
    """Whether there is a new random graph in every round."""


class FileTopology(Section):
    """A graph from a file with an edge list or GraphML; its nodes are 0 to M-1."""

    kind: Literal["file"]
    path: str = affects("place")
    """The file of the graph."""
    dynamic: bool = False
    """Whether clients change places in every round."""


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

    Attributes:
        factored: whether the networks have a factored form of their Jacobians.
    """

    factored: ClassVar[bool] = False

    name: str
    init: Literal["shared", "per-client"] = "shared"
    """`shared`: all clients start from the same random weights. `per-client`: every client draws
    its own.
    """
    weights: str | None = affects("place", default=None)
    """A state_dict of torch (.pt) from which every client starts; null draws random weights."""


class MethodSettings(Section):
    """Base of the settings of all methods; a subclass allows one `name` only."""

    name: str

    @classmethod
    def defaults(cls, model: ModelSettings) -> dict[str, Any]:
        """Defaults that depend on the network, for settings that are not given."""
        return {}


class EvaluationSettings(Section):
    """When a run is measured."""

    every: int = affects("extent", default=1, ge=1, le=MOST_ROUNDS)
    """Rounds between two evaluations. The last round is always evaluated."""
    clients: bool = affects("extent", default=True)
    """Whether every client's own model is tested as well."""
    clients_every: int = affects("extent", default=1, ge=1, le=MOST_ROUNDS)
    """Rounds between two tests of the clients' own models: a multiple of `every`, or 1 for every
    evaluation. They are also tested after the last round."""
    sample: int | None = affects("extent", default=None, ge=2, le=MOST_SAMPLES)
    """Number of test samples for the tests of the clients' own models; null for the whole test set, on
    which the average is always tested. The samples are drawn for every evaluation, the same for all
    clients. The record holds the standard error of each client's accuracy."""

    @model_validator(mode="after")
    def _at_evaluations(self) -> EvaluationSettings:
        if self.clients_every > 1 and self.clients_every % self.every:
            raise ValueError(
                "clients_every must be a multiple of every, because clients are only tested at "
                f"evaluations, got clients_every {self.clients_every} with every {self.every}"
            )
        return self

    def tests_clients(self, done: int, rounds: int) -> bool:
        """Whether the clients' own models are tested in an evaluation after `done` of `rounds` rounds."""
        return self.clients and clients_tested(done, rounds, self.clients_every)


class OutputSettings(Section):
    """Checkpoints and the run's wall-clock time."""

    checkpoint_every: int = affects("nothing", default=1, ge=1, le=MOST_ROUNDS)
    """Rounds between two checkpoints. There is always a checkpoint after the last round."""
    checkpoint_minutes: float | None = affects("nothing", default=None, gt=0, le=1e6)
    """A checkpoint is also written when this many minutes have passed since the last one."""
    checkpoint_part: Annotated[
        int | str | None,
        readable_by(
            parse_bytes,
            2**50,
            'a positive whole number of bytes up to 2^50, or text such as "256MiB" or "1GB"',
        ),
    ] = affects("nothing", default="256MiB")
    """Bytes, or text such as "256MiB", of the parts of a large checkpoint, which ranks write at the
    same time. A checkpoint of fewer than two such parts is one file. Null: always one file.
    """
    time_limit: Annotated[
        int | float | str | None,
        readable_by(
            parse_seconds,
            10 * 365 * 86400,
            "a positive number of seconds up to ten years, or text such as "
            '"90m", "1.5h", "1:30:00" or "2-12:00:00"',
        ),
    ] = affects("nothing", default=None)
    """Wall-clock time from the start of the program: seconds, or text such as "90m", "1.5h",
    "1:30:00" or "2-12:00:00". The run stops with a checkpoint and exit code 75 before a round that
    would not fit.
    """
    trace: bool = affects("nothing", default=False)
    """Whether RUN.trace.json is written, which says what every rank did at which time."""

    @property
    def part_bytes(self) -> int | None:
        """`checkpoint_part` in bytes, None for no parts."""
        return None if self.checkpoint_part is None else parse_bytes(self.checkpoint_part)

    @property
    def seconds(self) -> float | None:
        """`time_limit` in seconds, None for no limit."""
        return None if self.time_limit is None else parse_seconds(self.time_limit)


class ComputeSettings(Section):
    """Where and how precisely a run is computed."""

    device: str = affects("rounding", default="auto")
    """`auto`, `cpu`, `cuda` or `cuda:N`. `auto` and `cuda` assign a node's GPUs by local rank."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of all numbers."""
    threads: int = affects("rounding", default=1, ge=1, le=4096)
    """Threads per rank."""
    memory_limit: Annotated[
        int | str | None,
        readable_by(
            parse_bytes,
            2**50,
            'a positive whole number of bytes up to 2^50, or text such as "2GB" or "512MiB"',
        ),
    ] = affects("rounding", default=None)
    """Working memory of a rank in bytes, or text such as "2GB", beyond its clients' data and
    weights. Null: 256 MiB for messages, and what a kernel needs; a kernel of a network without a
    factored form holds at most 1 GiB of gradients then.
    """
    batch: int | None = affects("rounding", default=None, ge=1, le=MOST_CLIENTS)
    """How many clients a rank evolves together. Null: one on a CPU, and as many as fit on a GPU.
    Above one, the last bits depend on which clients share a rank.
    """
    byte_products: Literal["auto", "on", "off"] = affects("rounding", default="auto")
    """Whether images of bytes are multiplied as bytes: where that is exact and faster (`auto`),
    always (`on`) or never (`off`).
    """
    evolution: Literal["auto", "compiled", "tensor"] = affects("rounding", default="auto")
    """Which version integrates the outputs of NTK methods under the cross-entropy loss: the
    compiled one for CPUs or the tensor one. `auto` takes the compiled one where all ranks have it
    and compute on a CPU.
    """
    training: Literal["auto", "compiled", "tensor"] = affects("rounding", default="auto")
    """Which version takes an mlp's local steps by SGD: the compiled one for CPUs and float32, or the
    tensor one. `auto` takes the compiled one where all ranks have it.
    """
    gpu_aware_mpi: bool = affects("nothing", default=False)
    """Whether MPI gets messages in the GPU's memory and not in host memory. MPI must be built with
    CUDA support.
    """
    timeout: Annotated[
        int | float | str | None,
        readable_by(
            parse_seconds,
            30 * 86400,
            'a number of seconds up to 30 days, or text such as "10min" or "1h", or null',
        ),
    ] = affects("nothing", default="10min")
    """How long ranks wait for a rank that gives no sign of life: seconds, or text such as "10min".
    Null: no limit.
    """

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

    @field_validator("byte_products", mode="before")
    @classmethod
    def _yaml_word(cls, value: object) -> object:
        # YAML 1.1 reads the words `on` and `off` as true and false.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes, None for no limit."""
        return None if self.memory_limit is None else parse_bytes(self.memory_limit)

    @property
    def patience(self) -> float | None:
        """`timeout` in seconds, None for no limit."""
        return None if self.timeout is None else parse_seconds(self.timeout)
