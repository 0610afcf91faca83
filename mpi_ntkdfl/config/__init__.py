"""What the user may say: one frozen, validated description of a run.

Precedence: defaults < YAML file or preset < `--set a.b=c`; a file's key `base` names a preset that is
read below it. Within one layer the `kind` or `name` of a section is read first; where it differs from
the layer below, that section starts again from the defaults of its new kind, so that keys of the
former kind cannot linger. Unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from mpi_ntkdfl.config import kinds
from mpi_ntkdfl.config.environment import EnvironmentSettings
from mpi_ntkdfl.config.sections import (
    MOST_CLIENTS,
    MOST_ROUNDS,
    MOST_SAMPLES,
    CompleteTopology,
    ComputeSettings,
    DatasetSettings,
    DirichletPartition,
    ErdosRenyiTopology,
    EvaluationSettings,
    FilePartition,
    FileTopology,
    GridTopology,
    IidPartition,
    MethodSettings,
    ModelSettings,
    OutputSettings,
    Partition,
    RegularTopology,
    RingTopology,
    ShardsPartition,
    SmallWorldTopology,
    StarTopology,
    Topology,
    WriterPartition,
)
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import did_you_mean, unknown
from mpi_ntkdfl.runtime.settings import Effect, Section, affects, declared_effect
from mpi_ntkdfl.runtime.yaml_text import write_yaml

__all__ = [
    "MOST_CLIENTS",
    "MOST_ROUNDS",
    "MOST_SAMPLES",
    "CompleteTopology",
    "ComputeSettings",
    "Config",
    "DatasetSettings",
    "DirichletPartition",
    "EnvironmentSettings",
    "ErdosRenyiTopology",
    "EvaluationSettings",
    "FilePartition",
    "FileTopology",
    "GridTopology",
    "IidPartition",
    "MethodSettings",
    "ModelSettings",
    "OutputSettings",
    "Partition",
    "RegularTopology",
    "RingTopology",
    "ShardsPartition",
    "SmallWorldTopology",
    "StarTopology",
    "Topology",
    "WriterPartition",
    "dataset_settings",
    "effect",
    "parse",
    "topology_settings",
]


class Config(Section):
    """A whole run; equal configurations give equal results.

    `on_divergence` says what happens when a client's weights or loss become non-finite: the run
    stops, or the client takes no step in that round and the run continues. With `environment` the run
    tells how long the federation would have taken; null leaves simulated time out.
    """

    seed: int = affects("seed", default=0, ge=0, lt=2**63)
    rounds: int = affects("extent", default=30, ge=1, le=MOST_ROUNDS)
    clients: int = Field(default=300, ge=1, le=MOST_CLIENTS)
    on_divergence: Literal["stop", "continue"] = "stop"
    dataset: SerializeAsAny[DatasetSettings]
    partition: Partition
    topology: Topology
    model: SerializeAsAny[ModelSettings]
    algorithm: SerializeAsAny[MethodSettings]
    evaluation: EvaluationSettings = EvaluationSettings()
    output: OutputSettings = OutputSettings()
    compute: ComputeSettings = ComputeSettings()
    environment: EnvironmentSettings | None = None

    @model_serializer(mode="wrap")
    def _leave_out_no_environment(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out an absent environment, so that names and texts of other runs stay as they were."""
        whole: dict[str, Any] = serialize(self)
        return {k: v for k, v in whole.items() if k != "environment" or v is not None}

    @field_validator("dataset", "model", "algorithm", mode="before")
    @classmethod
    def _of_its_own_class(cls, value: Any, info: ValidationInfo) -> Any:
        name = value.get("name") if isinstance(value, Mapping) else None
        try:
            settings_class = kinds.named(str(info.field_name), name)
        except InputError as error:
            raise ValueError(str(error)) from error
        if issubclass(settings_class, MethodSettings) and (model := info.data.get("model")):
            value = {**settings_class.defaults(model), **value}
        return settings_class.model_validate(value)

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
        return write_yaml(self.model_dump(mode="json"))


# ------------------------------------------------------------------------------- what a setting affects


def effect(key: str, config: Config | None = None) -> Effect:
    """What a setting affects: the one answer for resuming, study keys, comparing and scaling.

    Args:
        key: dotted, such as `compute.threads`.
        config: of a run. With it, declarations of the run's own method and network count as well;
            without it, settings of methods and networks affect the result, because their classes
            may not be at hand where a record is read.

    Returns:
        The declared effect; `result` for a setting that declares nothing or is not known.
    """
    section, *names = key.split(".")
    if not names:
        classes: Iterable[type[BaseModel]] = [Config]
        names = [section]
    elif config is not None and getattr(config, section, None) is not None:
        classes = [type(getattr(config, section))]
    else:
        classes = kinds.classes(section)
    for each in classes:
        if names[0] in each.model_fields:
            return _declared(each, names)
    return "result"


def _declared(section: type[BaseModel], names: list[str]) -> Effect:
    """What the setting at `names` declares; the innermost section that has it decides."""
    field = section.model_fields[names[0]]
    for inner in kinds.sections_in(field.annotation):
        if len(names) > 1 and names[1] in inner.model_fields:
            return _declared(inner, names[1:])
    return declared_effect(field)


# --------------------------------------------------------------------------------- reading and merging

_INNER_KINDS = ("availability", "waiting")
"""Sections within `environment` that have kinds."""

_DEFAULT_KINDS: dict[str, Any] = {
    "dataset": {"name": "fashion-mnist"},
    "partition": {"kind": "dirichlet"},
    "topology": {"kind": "regular"},
    "model": {"name": None},
    "algorithm": {"name": None},
}
"""Each section that has kinds, its selector (`name` or `kind`), and the kind it has by default; None
stands for the first in the table."""


def parse(layers: Iterable[Mapping[str, Any]]) -> Config:
    """Merges layers, later ones winning, and validates the result.

    Args:
        layers: plain mappings, such as those of `presets.read_source` and `presets.read_overrides`.

    Raises:
        InputError: listing every setting that is wrong, with what was given.
    """
    merged: dict[str, Any] = {key: dict(value) for key, value in _DEFAULT_KINDS.items()}
    for section in ("model", "algorithm"):
        merged[section] = {"name": kinds.first(section)}
    for layer in layers:
        for key, value in layer.items():
            merged[key] = _merge_section(key, merged.get(key), value)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"configuration: {_explain(error, merged)}") from None


def dataset_settings(name: str, **settings: object) -> DatasetSettings:
    """The settings of a data set, as if a configuration said `dataset: {name: ..., ...}`.

    Raises:
        InputError: if there is no such data set, or a setting is wrong.
    """
    section = {"name": name, **settings}
    try:
        return kinds.named("dataset", name).model_validate(section)  # type: ignore[return-value]
    except ValidationError as error:
        raise InputError(f"data set {name}: {_explain(error, {})}") from None


def topology_settings(section: object) -> Topology:
    """The settings of a graph from a `topology:` section as a record holds it."""
    return TypeAdapter[Topology](Topology).validate_python(section)


def _merge_section(section: str, below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    selectors = ("kind",) if section in _INNER_KINDS else _DEFAULT_KINDS.get(section, ())
    for selector in selectors:
        if selector in above and above[selector] != below.get(selector):
            return dict(above)
    if section == "environment":  # its sections have layers of their own
        return below | {name: _merge_section(name, below.get(name), v) for name, v in above.items()}
    return {**below, **above}


def _explain(error: ValidationError, merged: Mapping[str, Any]) -> str:
    problems = error.errors(include_url=False)
    # A list that has lost its wrong entries may be too short; only the entries are worth a word.
    inner = {each["loc"][:-1] for each in problems}
    told = [each for each in problems if each["type"] != "too_short" or each["loc"] not in inner]
    return "; ".join(_explain_one(dict(each), merged) for each in told)


def _explain_one(problem: Mapping[str, Any], merged: Mapping[str, Any]) -> str:
    """One wrong setting as a sentence: where, the rule, what came, the way out."""
    where = [str(part) for part in problem["loc"]]
    # A discriminated union puts its tag into the location: topology.regular.degree.
    if len(where) > 2 and where[0] in ("partition", "topology"):
        del where[1]
    if len(where) > 3 and where[1] in _INNER_KINDS:
        del where[2]
    message, given, hint = problem["msg"].removeprefix("Value error, "), problem["input"], ""
    match problem["type"]:
        case "extra_forbidden":
            message, hint = "unknown key", did_you_mean(where[-1], _keys(where[:-1], merged))
        case "union_tag_invalid":
            tags = str(problem["ctx"]["expected_tags"]).replace("'", "").split(", ")
            return f"{'.'.join(where)}.kind: {unknown('kind', problem['ctx']['tag'], tags)}"
        case "union_tag_not_found":
            example = {"partition": "iid", "topology": "ring", "waiting": "barrier"}.get(
                where[-1], "always"
            )
            message = f"needs a kind, such as {{kind: {example}}}"
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "expected settings as `key: value`"
    said = "" if isinstance(given, dict | BaseModel) else f", got {given!r}"
    return f"{'.'.join(where)}: {message}{said}{hint}" if where else message


def _keys(where: list[str], merged: Mapping[str, Any]) -> Iterable[str]:
    """Keys that the section at `where` of a configuration has."""
    if not where:
        return Config.model_fields
    section = merged.get(where[0])
    name = section.get("name", section.get("kind")) if isinstance(section, Mapping) else None
    classes: list[type[BaseModel]] = [*kinds.classes(where[0], name)]
    for inner in where[1:]:
        fields = [each.model_fields[inner] for each in classes if inner in each.model_fields]
        classes = [each for field in fields for each in kinds.sections_in(field.annotation)]
    return {key for each in classes for key in each.model_fields}
