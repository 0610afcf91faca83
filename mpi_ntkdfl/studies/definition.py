"""The definition of a study: axes of settings, scales, figures, and published numbers for comparison.

A definition is a YAML file of the package or of a user. It contains only settings; nothing in it is
executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from mpi_ntkdfl.config.environment import LinkSettings
from mpi_ntkdfl.metrics import at
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import did_you_mean, neither, unknown
from mpi_ntkdfl.runtime.settings import Section
from mpi_ntkdfl.runtime.yaml_text import read_yaml

Settings = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
ScaleName = Name
"""Any name. At the scale `paper` published numbers are drawn."""
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]


class Variant(Section):
    """One point of an axis.

    Attributes:
        label: its name in tables and legends.
        value: its position on a numerical axis.
        family: variants of one family are one line over the axis; empty if there is only one.
        settings: settings that replace those of the study and its scale.
        at: further settings, by scale.
        only: the only scale that has this variant; None for all scales.
    """

    label: str
    value: float | None = None
    family: str = ""
    settings: Settings = {}
    at: dict[ScaleName, Settings] = {}
    only: ScaleName | None = None


class Axis(Section):
    """An axis: settings that vary; `label` is its name in figures."""

    name: Name
    label: str = ""
    log: bool = False
    variants: Annotated[tuple[Variant, ...], Field(strict=False, min_length=1)]

    def at(self, scale: ScaleName) -> list[Variant]:
        """Its variants at a scale."""
        return [v for v in self.variants if v.only in (None, scale)]


class Scale(Section):
    """A size of the study.

    Attributes:
        seeds: number of seeds, from 0.
        targets: accuracies for which tables show the costs.
        settings: settings that replace those of the study.
        by_seed: settings of seed 0, 1, ... that replace all others, such as a partition file for each
            seed; further seeds have no such settings.
    """

    seeds: int = Field(ge=1)
    targets: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)
    ]
    settings: Settings = {}
    by_seed: Annotated[tuple[Settings, ...], Field(strict=False)] = ()


class PublishedLine(Section):
    """Published points of one line of a panel, with the labels of the study."""

    panel: str = ""
    line: str
    x: Numbers
    y: Numbers

    @model_validator(mode="after")
    def _pairs(self) -> PublishedLine:
        if len(self.x) != len(self.y):
            raise ValueError(f"{self.line}: {len(self.x)} values of x, {len(self.y)} of y")
        return self


class Published(Section):
    """Numbers of a publication, for the paper's scale."""

    source: str
    lines: Annotated[tuple[PublishedLine, ...], Field(strict=False, min_length=1)]


class LinkGrid(Section):
    """Links for which simulated time is computed.

    Attributes:
        latency: of every message, such as `50ms`.
        rate: of each client in both directions, such as `10Mbit/s`; a server's link has it as well.
    """

    latency: Names
    rate: Names

    @model_validator(mode="after")
    def _have_units(self) -> LinkGrid:
        for each in self.latency:
            LinkSettings(latency=each)
        for each in self.rate:
            LinkSettings(up=each, down=each)
        return self


class Messages(Section):
    """Another form of messages, which changes the length of messages and not the rounds to a target.

    Attributes:
        of: label of the variant of the study that sends them.
        label: of the form.
        settings: over those of the variant's runs.
    """

    of: str
    label: str
    settings: Settings


class Figure(Section):
    """A figure, and the table of its numbers.

    Attributes:
        name: the name of its files.
        title: the text above it.
        kind: curves (`y` against `x`, by round), ends (`y` at the end against the axis `x`), taus (share
            of clients by chosen tau), selection (average of some clients, chosen on half the test
            set), drift (relative change of the kernel, against the axis `x`), sites (`y` at the end
            by site, such as hospital), privacy (accuracy at the end against the PSNR of samples that an
            audit reconstructs; variants of one `family` make a line), map (`y` at the end, by colour,
            over the two axes `x`) or fastest (which combination reaches the highest target first in
            simulated time, over `links`).
        x: metrics for curves, an axis of the study for ends and drift, two for a map.
        y: metrics, one panel each.
        panels: the axis that has a panel for each of its variants.
        log_x: whether the horizontal axis of curves is logarithmic.
        limits: ends of the vertical axis of curves; None fits them to the data.
        guides: exponents of power laws to draw beside the curves; both axes are logarithmic then.
        published: numbers to compare with.
        links: for fastest: the latencies and rates.
        messages: for fastest: a panel for each of these forms.
    """

    name: Name
    title: str
    kind: Literal[
        "curves", "ends", "taus", "selection", "drift", "sites", "privacy", "map", "fastest"
    ]
    x: Annotated[tuple[str, ...], Field(strict=False)] = ()
    y: Annotated[tuple[str, ...], Field(strict=False)] = ()
    panels: str | None = None
    log_x: bool = False
    limits: tuple[float, float] | None = Field(default=None, strict=False)
    guides: Numbers = ()
    published: Published | None = None
    links: LinkGrid | None = None
    messages: Annotated[tuple[Messages, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Figure:
        if self.kind == "curves":
            self._require_metrics("x", self.x)
        elif len(set(self.x)) != _AXES.get(self.kind, 0) or len(self.x) != len(set(self.x)):
            raise ValueError(
                f"figure {self.name}: x must name one axis for ends and drift, two for a map, and "
                f"nothing for {self.kind}, got {list(self.x)}"
            )
        if bool(self.y) != (self.kind in ("curves", "ends", "sites", "map")):
            raise ValueError(
                f"figure {self.name}: y is needed for curves, ends, sites and maps, and only there"
            )
        if (self.links is not None) != (self.kind == "fastest") or (
            self.messages and self.links is None
        ):
            raise ValueError(
                f"figure {self.name}: links are needed for fastest, and only there; messages need links"
            )
        self._require_metrics("y", self.y or [metric.name for metric in at("y")])
        if (self.guides or self.limits) and self.kind != "curves":
            raise ValueError(f"figure {self.name}: guides and limits are for curves")
        if self.limits and not self.limits[0] < self.limits[1]:
            raise ValueError(
                f"figure {self.name}: limits must be [low, high], got {list(self.limits)}"
            )
        return self

    def _require_metrics(self, place: Literal["x", "y"], names: Sequence[str]) -> None:
        possible = [metric.name for metric in at(place)]
        if not names or not set(names) <= set(possible):
            raise ValueError(
                f"figure {self.name}: {place} must be of {', '.join(possible)}, got {list(names)}"
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the study that are axes of the figure."""
        return self.x if self.kind in _AXES else ()

    @property
    def needs_weights(self) -> bool:
        """Whether it is computed from checkpoints."""
        return self.kind in ("selection", "drift", "privacy")


_AXES = {"ends": 1, "drift": 1, "map": 2}
"""By the kind of figure: number of axes of the study that it is drawn against."""


class Definition(Section):
    """A study.

    Attributes:
        title: its title, one line.
        about: what it shall show.
        base: the preset from which all its runs start.
        settings: settings that replace those of the preset.
        scales: its sizes.
        axes: the settings that vary; a run has one variant of each axis.
        combine: every combination of variants, or (zip) the first of each axis, the second, ...
        compared: the axis whose variants reports compare seed by seed with its first one.
        figures: its figures.
    """

    title: str
    about: str
    base: str
    settings: Settings = {}
    scales: dict[ScaleName, Scale] = Field(min_length=1)
    axes: Annotated[tuple[Axis, ...], Field(strict=False, min_length=1)]
    combine: Literal["product", "zip"] = "product"
    compared: str | None = None
    figures: Annotated[tuple[Figure, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Definition:
        names = [axis.name for axis in self.axes]
        if len(set(names)) < len(names):
            raise ValueError(f"every axis needs a name of its own, got {', '.join(names)}")
        for each in self.axes:
            self._require_scales(each)
        if self.compared is not None and self.compared not in names:
            raise ValueError(f"compared must be one of {', '.join(names)}, got {self.compared!r}")
        figures = [figure.name for figure in self.figures]
        if len(set(figures)) < len(figures):
            raise ValueError(f"every figure needs a name of its own, got {', '.join(figures)}")
        for figure in self.figures:
            for axis in (*figure.axes, *filter(None, [figure.panels])):
                if axis not in names:
                    raise ValueError(
                        f"figure {figure.name}: axis must be one of {', '.join(names)}, got {axis!r}"
                    )
        for axis_definition in self.axes:
            drawn_over = any(
                f.kind != "map" and axis_definition.name in f.axes for f in self.figures
            )
            if drawn_over and any(v.value is None for v in axis_definition.variants):
                raise ValueError(
                    f"axis {axis_definition.name}: a figure is drawn against it, so every variant "
                    "needs a value"
                )
        for scale in self.scales:
            sizes = {axis.name: len(axis.at(scale)) for axis in self.axes}
            if not all(sizes.values()) or (self.combine == "zip" and len(set(sizes.values())) > 1):
                raise ValueError(
                    f"scale {scale}: every axis needs a variant, and as many as the others to be "
                    f"zipped, got {sizes}"
                )
            if self.combine == "zip":
                self._require_distinct(scale)
        return self

    def _require_distinct(self, scale: ScaleName) -> None:
        """Checks that the zipped variants of a scale differ in a label.

        Raises:
            ValueError: otherwise.
        """
        cells = list(zip(*([v.label for v in axis.at(scale)] for axis in self.axes), strict=True))
        for cell in cells:
            if cells.count(cell) > 1:
                raise ValueError(f"scale {scale}: the zipped labels {', '.join(cell)!r} twice")

    def _require_scales(self, axis: Axis) -> None:
        """Checks that variants name scales of the study, and that their labels differ at each.

        Raises:
            ValueError: otherwise.
        """
        for variant in axis.variants:
            for name in [*variant.at, *([variant.only] if variant.only else [])]:
                if name not in self.scales:
                    hint = unknown("scale", name, self.scales)
                    raise ValueError(f"axis {axis.name}, variant {variant.label}: {hint}")
        for scale in self.scales:
            labels = [variant.label for variant in axis.at(scale)]
            for label in labels:
                if labels.count(label) > 1 and self.combine == "product":
                    raise ValueError(f"axis {axis.name}: label {label!r} twice")

    def scale(self, name: ScaleName) -> Scale:
        """A size of the study.

        Raises:
            InputError: if it has no such size.
        """
        if name not in self.scales:
            raise InputError(f"this study has no such scale: {unknown('scale', name, self.scales)}")
        return self.scales[name]

    @property
    def needs_weights(self) -> bool:
        """Whether checkpoints of its runs are read."""
        return any(figure.needs_weights for figure in self.figures)


# ---------------------------------------------------------------------------------------- reading


def names() -> list[str]:
    """The studies that come with the package."""
    folder = resources.files("mpi_ntkdfl").joinpath("studies", "definitions")
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def text(source: str) -> str:
    """The YAML of a study by name, or of a file by path.

    Raises:
        InputError: if there is neither such a study nor such a file.
    """
    if source in names():
        folder = resources.files("mpi_ntkdfl").joinpath("studies", "definitions")
        return folder.joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(neither(source, "study", names(), error)) from error


def read(source: str) -> Definition:
    """Reads a study by name, or a file by path.

    Raises:
        InputError: if it cannot be read or is not a valid definition.
    """
    raw = read_yaml(text(source), source)
    if not isinstance(raw, dict):
        raise InputError(f"{source} must hold a mapping, got {type(raw).__name__}")
    try:
        return Definition.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def called(source: str) -> str:
    """The name of a study for its files: its name in the package, or a file's name without suffix."""
    return source if source in names() else Path(source).stem


_KEYS = {
    key
    for each in (Variant, Axis, Scale, LinkGrid, Messages, Figure, Definition)
    for key in each.model_fields
}


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(where.rpartition('.')[2], _KEYS)}"
        given = problem["input"]
        shown = f", got {given!r}" if isinstance(given, str | int | float) else ""
        lines.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(lines)
