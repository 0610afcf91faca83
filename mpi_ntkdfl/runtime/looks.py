"""How the lines of a method look in figures. This module needs neither torch nor matplotlib.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008). Readers with the common kinds of
colour blindness can tell them apart. Their yellow is left out, because it is too pale for lines on
paper. Two greys are added.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
DARK_GREY, GREY = "#555555", "#999999"

_FILLS = ("full", "none", "left", "bottom", "top")


@dataclass(frozen=True)
class LineStyle:
    """How a line looks.

    Attributes:
        color: `#RRGGBB`.
        dashes: lengths of dashes and gaps in turn, in line widths; empty for a solid line.
        marker: the letter that names the marker in matplotlib.
        fill: which part of the marker is filled: full, none, left, bottom or top.

    Raises:
        ValueError: if an attribute has another form.
    """

    color: str
    dashes: tuple[float, ...]
    marker: str
    fill: str = "full"

    def __post_init__(self) -> None:
        """Refuses values that matplotlib would refuse later, in the middle of a figure."""
        if not re.fullmatch("#[0-9A-Fa-f]{6}", self.color):
            raise ValueError(f"a colour is written #RRGGBB, got {self.color!r}")
        if len(self.dashes) % 2 or not all(length > 0 for length in self.dashes):
            raise ValueError(f"dashes and gaps come in pairs above 0, got {self.dashes}")
        if len(self.marker) != 1:
            raise ValueError(f"a marker is one letter as in matplotlib, got {self.marker!r}")
        if self.fill not in _FILLS:
            raise ValueError(f"fill is one of {', '.join(_FILLS)}, got {self.fill!r}")

    def to_json(self) -> str:
        """The style as a record stores it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LineStyle:
        """Reads what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: if the text is something else.
        """
        stored = json.loads(text)
        return cls(**{**stored, "dashes": tuple(stored["dashes"])})
