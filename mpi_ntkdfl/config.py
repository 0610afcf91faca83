"""What the user may say: one frozen, validated description of a run.

Precedence: defaults < YAML file or preset < `--set a.b=c`; a file's key `base` names a preset that is
read below it. Within one layer the `kind` or `name` of a
section is read first; where it differs from the layer below, that section starts again from the
defaults of its new kind, so that keys of the former kind cannot linger. Unknown keys are errors.

Settings of a method live beside the method (`algorithms/`), as a subclass of `MethodSettings`;
`parse` is told which methods there are, so that this module need not know any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mpi_ntkdfl.runtime.errors import InputError

_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------- data set


class DatasetSettings(Section):
    """Which samples exist. `root` is a folder (or, for femnist, the folder of its HDF5 files)."""

    name: Literal["digits", "breast-cancer", "mnist", "fashion-mnist", "femnist"] = "fashion-mnist"
    root: str | None = None


# --------------------------------------------------------------------------------------- partition


class IidPartition(Section):
    """Equal disjoint random shares."""

    kind: Literal["iid"]


class DirichletPartition(Section):
    """Class proportions from Dir(alpha); `samples` a client (default: training samples / clients)."""

    kind: Literal["dirichlet"]
    alpha: float = Field(default=0.1, gt=0)
    samples: int | None = Field(default=None, ge=1)


class ShardsPartition(Section):
    """Samples sorted by label, cut into `clients * per_client` shards, dealt at random."""

    kind: Literal["shards"]
    per_client: int = Field(default=2, ge=1)


class WriterPartition(Section):
    """One client a writer, for data sets that know their writers (femnist)."""

    kind: Literal["writer"]


class FilePartition(Section):
    """Partition read from an npz file with `offsets [M+1]` and `indices`."""

    kind: Literal["file"]
    path: str


Partition = Annotated[
    IidPartition | DirichletPartition | ShardsPartition | WriterPartition | FilePartition,
    Field(discriminator="kind"),
]

# ---------------------------------------------------------------------------------------- topology


class RegularTopology(Section):
    """Random `degree`-regular graph."""

    kind: Literal["regular"]
    degree: int = Field(default=5, ge=1)
    dynamic: bool = True


class RingTopology(Section):
    """Client i beside i-1 and i+1; if dynamic, the seats are shuffled every round."""

    kind: Literal["ring"]
    dynamic: bool = False


class CompleteTopology(Section):
    """Everybody with everybody."""

    kind: Literal["complete"]
    dynamic: bool = False


class StarTopology(Section):
    """Client 0 in the centre; if dynamic, the seats are shuffled every round."""

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
    degree: int = Field(default=4, ge=2)
    p: float = Field(default=0.1, ge=0, le=1)
    dynamic: bool = True


class FileTopology(Section):
    """Graph from an edge list or a GraphML file, nodes 0 to M-1."""

    kind: Literal["file"]
    path: str
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
    """The network; `weights` is a torch state_dict (.pt) every client starts from."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = (100,)
    init: Literal["shared", "per-client"] = "shared"
    weights: str | None = None


class MethodSettings(Section):
    """Base of the settings of all methods; a subclass narrows `name` to its own."""

    name: str


class EvaluationSettings(Section):
    """Evaluate after every `every` rounds (and the last); `clients`: each client's model as well."""

    every: int = Field(default=1, ge=1)
    clients: bool = True


class OutputSettings(Section):
    """Checkpoints and the run's wall-clock time.

    A checkpoint is written after every `checkpoint_every` rounds, whenever `checkpoint_minutes` have
    gone by since the last one, and at the end. The run stops with a checkpoint before a round that
    would not fit into `time_limit` (seconds, or text as "90m", "1.5h", "1:30:00", "2-12:00:00").
    """

    checkpoint_every: int = Field(default=1, ge=1)
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    time_limit: int | float | str | None = None

    @field_validator("time_limit")
    @classmethod
    def _readable_time(cls, limit: int | float | str | None) -> int | float | str | None:
        if limit is not None and not 0 < _parse_seconds(limit) < 2**63:
            raise ValueError(
                'expected a positive number of seconds, or text such as "90m", "1.5h", "1:30:00" or '
                '"2-12:00:00"'
            )
        return limit

    @property
    def seconds(self) -> float | None:
        """`time_limit` in seconds, None for no limit."""
        return None if self.time_limit is None else _parse_seconds(self.time_limit)


def _parse_seconds(limit: float | str) -> float:
    """Seconds, 0 for what is no time."""
    if isinstance(limit, int | float):
        return limit
    if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd])\s*", limit):
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if match := re.fullmatch(r"\s*(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)\s*", limit):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    return 0.0


class ComputeSettings(Section):
    """Where and how precisely; `threads`, `memory_limit` (bytes, or text as "2GB"), `batch` are per rank.

    `batch` clients evolve together; null is one on CPU, and as many as fit on a GPU. Above one, the
    last bits depend on which clients share a rank.

    `byte_products`: images of bytes are multiplied as bytes where that is exact and faster (`auto`),
    always (`on`) or never (`off`).

    `gpu_aware_mpi`: MPI is handed messages in the GPU's memory, instead of by way of host memory; it
    must be built with CUDA support.

    `evolution` says what integrates NTK methods' outputs under the cross-entropy loss: the compiled
    version for CPUs, or the tensor version. With auto it is the compiled one where all ranks have it and
    compute on a CPU.
    """

    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    threads: int = Field(default=1, ge=1)
    memory_limit: int | str | None = None
    batch: int | None = Field(default=None, ge=1)
    byte_products: Literal["auto", "on", "off"] = "auto"
    gpu_aware_mpi: bool = False
    evolution: Literal["auto", "compiled", "tensor"] = "auto"

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

    @field_validator("byte_products", mode="before")
    @classmethod
    def _yaml_word(cls, value: object) -> object:
        # YAML 1.1 reads the words on and off as true and false.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("memory_limit")
    @classmethod
    def _readable_size(cls, size: int | str | None) -> int | str | None:
        if size is not None and not 0 < _parse_bytes(size) < 2**63:
            raise ValueError(
                'expected a positive number of bytes, or text such as "2GB" or "512MiB"'
            )
        return size

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes, None for no limit."""
        return None if self.memory_limit is None else _parse_bytes(self.memory_limit)


def _parse_bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMG]i?B)?\s*", size, re.IGNORECASE)
    return int(Decimal(match[1]) * _BYTES[(match[2] or "").upper()]) if match else 0


# ------------------------------------------------------------------------------------------ the run


class Config(Section):
    """A whole run; equal configurations give equal results.

    `on_divergence` says what happens when a client's weights or loss become non-finite: the run
    stops, or the client takes no step in that round and the run continues.
    """

    seed: int = Field(default=0, ge=0, lt=2**63)
    rounds: int = Field(default=30, ge=1)
    clients: int = Field(default=300, ge=1)
    on_divergence: Literal["stop", "continue"] = "stop"
    dataset: DatasetSettings
    partition: Partition
    topology: Topology
    model: ModelSettings
    algorithm: SerializeAsAny[MethodSettings]
    evaluation: EvaluationSettings = EvaluationSettings()
    output: OutputSettings = OutputSettings()
    compute: ComputeSettings = ComputeSettings()

    @field_validator("algorithm", mode="before")
    @classmethod
    def _method_settings(cls, value: Any, info: ValidationInfo) -> MethodSettings:
        methods: Mapping[str, type[MethodSettings]] = (info.context or {}).get("methods", {})
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in methods:
            raise ValueError(f"unknown method {name!r}; there are: {', '.join(sorted(methods))}")
        return methods[name].model_validate(value)

    @model_validator(mode="after")
    def _graph_exists(self) -> Config:
        graph, clients = self.topology, self.clients
        if isinstance(graph, RegularTopology | SmallWorldTopology) and graph.degree >= clients:
            raise ValueError(
                f"topology.degree must be below clients, got degree {graph.degree} with "
                f"{clients} clients"
            )
        if isinstance(graph, RegularTopology) and graph.degree * clients % 2:
            raise ValueError(
                f"a regular graph needs an even degree * clients, got {graph.degree} * {clients}: "
                "make one of them even"
            )
        if isinstance(graph, SmallWorldTopology) and graph.degree % 2:
            raise ValueError(f"a small-world graph needs an even degree, got {graph.degree}")
        if isinstance(graph, RingTopology) and clients < 3:
            raise ValueError(f"a ring needs at least 3 clients, got {clients}")
        return self

    def to_yaml(self) -> str:
        """The complete configuration, defaults included, as YAML that `parse` reads back."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


# --------------------------------------------------------------------------------- reading and merging

_SELECTORS = {
    "dataset": "name",
    "partition": "kind",
    "topology": "kind",
    "model": "name",
    "algorithm": "name",
}
_DEFAULT_KINDS: dict[str, Any] = {
    "dataset": {"name": "fashion-mnist"},
    "partition": {"kind": "dirichlet"},
    "topology": {"kind": "regular"},
    "model": {"name": "mlp"},
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, and refuses keys given twice, aliases and huge integers."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of aliases of aliases can stand for more than any memory holds.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        number = self.construct_yaml_int(node)
        # Hexadecimal digits beyond a few thousand make integers that Python refuses to print.
        if abs(number) >= 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, "an integer must be below 2^63", node.start_mark
            )
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text", node.start_mark
                )
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which `_Loader` would take for a number."""


# YAML 1.1, which PyYAML follows, takes 1e-3 for text because it lacks a dot.
for _end in (_Loader, _Dumper):
    _end.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)


def read_yaml(text: str, what: str) -> Any:
    """Parses YAML without running anything in it.

    Raises:
        InputError: if `text` is no valid YAML; `what` names it in the message.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except Exception as error:  # PyYAML lets others escape, such as KeyError from `!!bool x`
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} is not valid YAML: {problem}") from error


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("mpi_ntkdfl").joinpath("presets")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def preset_text(name: str) -> str:
    """The YAML text of a preset.

    Raises:
        InputError: if there is no such preset.
    """
    if name not in preset_names():
        raise InputError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    return resources.files("mpi_ntkdfl").joinpath("presets", f"{name}.yaml").read_text()


def read_source(source: str) -> list[dict[str, Any]]:
    """Reads a preset by name, or else a YAML file by path, and the presets it builds on.

    Returns:
        Layers for `parse`, plain mappings: what the key `base` names comes first.

    Raises:
        InputError: if it is neither, cannot be read, is not a mapping, or has a base that is no
            preset or leads back to itself.
    """
    layers = [_read_mapping(source)]
    seen = [source]
    while "base" in layers[0]:
        base = layers[0].pop("base")
        if base not in preset_names():
            raise InputError(
                f"{seen[-1]}: base must be a preset ({', '.join(preset_names())}), got {base!r}"
            )
        if base in seen:
            raise InputError(f"{source}: base leads in a circle: {' -> '.join([*seen, base])}")
        seen.append(base)
        layers.insert(0, _read_mapping(base))
    return layers


def _read_mapping(source: str) -> dict[str, Any]:
    if source in preset_names():
        text = preset_text(source)
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{source!r} is neither a preset ({', '.join(preset_names())}) nor a readable YAML "
                f"file: {reason}"
            ) from error
    raw = read_yaml(text, source)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError(f"{source} must hold a mapping of settings, got {type(raw).__name__}")
    return raw


def read_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turns `["a.b=c", ...]` into `{"a": {"b": c}}`, values read as YAML.

    Raises:
        InputError: for an assignment without `=` or key, or one that contradicts another's nesting.
    """
    layer: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise InputError(f"--set needs section.key=value, got {assignment!r}")
        value = read_yaml(text, f"the value of --set {key}")
        here = layer
        for part in path[:-1]:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise InputError(f"--set {key} contradicts an earlier --set {part}=...")
        here[path[-1]] = value
    return layer


def parse(
    layers: Iterable[Mapping[str, Any]], methods: Mapping[str, type[MethodSettings]]
) -> Config:
    """Merges layers, later ones winning, and validates the result.

    Args:
        layers: plain mappings, such as those of `read_source` and `read_overrides`.
        methods: settings class of every known method, by name; the first is the default.

    Raises:
        InputError: listing every setting that is wrong, with what was given.
    """
    merged: dict[str, Any] = {key: dict(value) for key, value in _DEFAULT_KINDS.items()}
    merged["algorithm"] = {"name": next(iter(methods), "")}
    for layer in layers:
        for key, value in layer.items():
            merged[key] = _merge_section(_SELECTORS.get(key), merged.get(key), value)
    try:
        return Config.model_validate(merged, context={"methods": methods})
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def dataset_settings(name: str) -> DatasetSettings:
    """The settings of a data set by name, as if a configuration said `dataset: {name: ...}`.

    Raises:
        InputError: if there is no such data set.
    """
    try:
        return DatasetSettings.model_validate({"name": name})
    except ValidationError as error:
        raise InputError(f"data set {_explain(error).removeprefix('configuration: ')}") from None


def topology_settings(section: object) -> Topology:
    """The settings of a graph from a `topology:` section as a record holds it."""
    return TypeAdapter[Topology](Topology).validate_python(section)


def _merge_section(selector: str | None, below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if selector in above and above[selector] != below.get(selector):
        return dict(above)
    return {**below, **above}


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        # A discriminated union puts its tag into the location: topology.regular.degree.
        where = [str(part) for part in problem["loc"]]
        if len(where) > 2 and where[0] in ("partition", "topology"):
            del where[1]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        given = (
            "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
        )
        lines.append(f"{'.'.join(where)}: {message}{given}" if where else message)
    return "configuration: " + "; ".join(lines)
