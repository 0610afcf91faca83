"""The configuration: one frozen, validated description of a run.

A configuration is merged from layers. A YAML file or a preset overrides the defaults, and `--set a.b=c`
overrides both. If a file has the key `base`, the preset of that name is the layer below the file. In each
layer, the `kind` or `name` of a section is read first. If it differs from the layer below, the section
starts again from the defaults of the new kind, so that no keys of the old kind remain. Unknown keys are
errors.
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
    ComputeSettings,
    EvaluationSettings,
    OutputSettings,
    Partition,
    RegularTopology,
    RingTopology,
    SmallWorldTopology,
    Topology,
)
from mpi_ntkdfl.config.sections import DatasetSettings as DatasetSettings
from mpi_ntkdfl.config.sections import MethodSettings as MethodSettings
from mpi_ntkdfl.config.sections import ModelSettings as ModelSettings
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import did_you_mean, unknown
from mpi_ntkdfl.runtime.settings import Effect, Section, affects, declared_effect
from mpi_ntkdfl.runtime.yaml_text import write_yaml

_ABSENT = ("stop_at", "environment")
"""Keys that the text of a configuration leaves out where they are null."""


class Config(Section):
    """A whole run; equal configurations give equal results."""

    seed: int = affects("seed", default=0, ge=0, lt=2**63)
    """The only source of randomness. Runs that differ only in the seed repeat one experiment."""
    rounds: int = affects("extent", default=30, ge=1, le=MOST_ROUNDS)
    """Number of rounds."""
    stop_at: float | None = affects("extent", default=None, gt=0, le=1)
    """Accuracy of the average at which the run is finished, before all rounds are done. It is looked
    at after every evaluated round. null: all rounds are done.
    """
    clients: int = Field(default=300, ge=1, le=MOST_CLIENTS)
    """Number of clients."""
    on_divergence: Literal["stop", "continue"] = "stop"
    """What happens when a client's weights become non-finite. `stop` ends the run with a message.
    With `continue` the client takes no step in that round and keeps its former weights,
    and non-finite losses are recorded as they are.
    """
    dataset: SerializeAsAny[DatasetSettings]
    """Which samples exist."""
    partition: Partition
    """Which client holds which samples."""
    topology: Topology
    """Which clients are neighbours."""
    model: SerializeAsAny[ModelSettings]
    """The network of the clients and its starting weights."""
    algorithm: SerializeAsAny[MethodSettings]
    """The method by which clients learn."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """When the run is measured."""
    output: OutputSettings = OutputSettings()
    """Checkpoints and the run's wall-clock time."""
    compute: ComputeSettings = ComputeSettings()
    """Where and how precisely the run is computed."""
    environment: EnvironmentSettings | None = None
    """Simulated time: links, devices and availability of the clients. null leaves it out."""

    @field_validator("dataset", "model", "algorithm", mode="before")
    @classmethod
    def _of_its_own_class(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(_needs_keys("name", value))
        try:
            settings_class = kinds.named(str(info.field_name), value.get("name"))
        except InputError as error:
            raise ValueError(str(error)) from error
        if issubclass(settings_class, MethodSettings) and (model := info.data.get("model")):
            value = {**settings_class.defaults(model), **value}
        return settings_class.model_validate(value)

    @model_serializer(mode="wrap")
    def _leave_out_what_is_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what most runs do not have, so that their texts stay short."""
        whole: dict[str, Any] = serialize(self)
        return {k: v for k, v in whole.items() if k not in _ABSENT or v is not None}

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

    @property
    def lasting(self) -> bool:
        """Whether all rounds have the same graph, so that clients keep their neighbours' samples."""
        steady = self.environment is None or self.environment.always
        return steady and not self.topology.dynamic

    def to_yaml(self) -> str:
        """The complete configuration, defaults included, as YAML that `parse` reads back."""
        return write_yaml(self.model_dump(mode="json"))


# ------------------------------------------------------------------------------- what a setting affects


def effect(key: str, config: Config | None = None) -> Effect:
    """What a setting affects. Resuming, studies, comparisons and scaling groups all ask this function.

    Args:
        key: dotted, such as `compute.threads`.
        config: the configuration of a run. With it, the settings of the run's own method and network
            have the effects that they declare. Without it, these settings affect the result, because
            their classes may be missing where a record is read.

    Returns:
        The declared effect, or `result` if the setting declares nothing or is unknown.
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
"""The sections that have kinds, with their selector (`name` or `kind`) and their default kind. None means
the first entry of the section's table."""


def parse(layers: Iterable[Mapping[str, Any]]) -> Config:
    """Merges layers and validates the result. Later layers override earlier ones.

    Args:
        layers: plain mappings, such as those that `presets.read_source` and `presets.read_overrides`
            return.

    Raises:
        InputError: if settings are wrong; the message lists all of them and the values that were given.
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
    """The settings of a data set, as from a configuration with `dataset: {name: ..., ...}`.

    Raises:
        InputError: if there is no such data set, or a setting is wrong.
    """
    section = {"name": name, **settings}
    try:
        return kinds.named("dataset", name).model_validate(section)  # type: ignore[return-value]
    except ValidationError as error:
        raise InputError(f"data set {name}: {_explain(error, {})}") from None


def topology_settings(section: object) -> Topology:
    """The settings of a graph, from the section `topology:` of a recorded configuration."""
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
    # Wrong entries are removed from a list, which may then be too short. Only the entries are reported.
    inner = {each["loc"][:-1] for each in problems}
    reported = [
        each for each in problems if each["type"] != "too_short" or each["loc"] not in inner
    ]
    return "; ".join(_explain_one(dict(each), merged) for each in reported)


def _explain_one(problem: Mapping[str, Any], merged: Mapping[str, Any]) -> str:
    """One wrong setting as a sentence: where it stands, the rule, what was given, and the way out."""
    where = [str(part) for part in problem["loc"]]
    # A discriminated union puts its tag into the location: topology.regular.degree.
    if len(where) > 2 and where[0] in ("partition", "topology"):
        del where[1]
    if len(where) > 3 and where[1] in _INNER_KINDS:
        del where[2]
    message, given, hint = problem["msg"].removeprefix("Value error, "), problem["input"], ""
    match problem["type"]:
        case "extra_forbidden":
            key, keys = where[-1], list(_keys(where[:-1], merged))
            meant = _CALLED[key] if _CALLED.get(key) in keys else key
            message = "unknown key"
            hint = did_you_mean(meant, keys) or f"; there are: {', '.join(sorted(keys))}"
        case "union_tag_invalid":
            tags = str(problem["ctx"]["expected_tags"]).replace("'", "").split(", ")
            return f"{'.'.join(where)}.kind: {unknown('kind', problem['ctx']['tag'], tags)}"
        case "union_tag_not_found":
            example = {"partition": "iid", "topology": "ring", "waiting": "barrier"}.get(
                where[-1], "always"
            )
            message = f"needs a kind, such as {{kind: {example}}}"
        case "model_type" | "model_attributes_type" | "dict_type":
            selector = next(iter(_DEFAULT_KINDS.get(where[0], ())), "key") if where else "key"
            message = _needs_keys(selector, given)
    said = "" if isinstance(given, dict | BaseModel) else f", got {given!r}"
    return f"{'.'.join(where)}: {message}{said}{hint}" if where else message


_CALLED = {
    "batch_size": "batch",
    "graph": "topology",
    "hidden_sizes": "hidden",
    "learning_rate": "lr",
    "method": "algorithm",
    "mixing": "averaging",
    "network": "model",
    "num_clients": "clients",
    "num_rounds": "rounds",
}
"""Names that other programs give to settings."""


def _needs_keys(selector: str, given: object) -> str:
    """The rule that a section consists of keys; a single word is shown where it belongs."""
    if isinstance(given, str) and selector != "key":
        return f"expected settings as `key: value`, such as {{{selector}: {given}}}"
    return "expected settings as `key: value`"


def _keys(where: list[str], merged: Mapping[str, Any]) -> Iterable[str]:
    """The keys that the section at `where` of a configuration may have."""
    if not where:
        return Config.model_fields
    section = merged.get(where[0])
    name = section.get("name", section.get("kind")) if isinstance(section, Mapping) else None
    classes: list[type[BaseModel]] = [*kinds.classes(where[0], name)]
    for inner in where[1:]:
        fields = [each.model_fields[inner] for each in classes if inner in each.model_fields]
        classes = [each for field in fields for each in kinds.sections_in(field.annotation)]
    return {key for each in classes for key in each.model_fields}
