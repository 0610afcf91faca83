"""The site: `sphinx-build -W docs site`. Building and reading it need no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

import mpi_ntkdfl  # noqa: E402

project = "mpi_ntkdfl"
author = "the authors of mpi_ntkdfl"
release = version = mpi_ntkdfl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
exclude_patterns = ["extensions"]

html_theme = "furo"
html_title = "mpi_ntkdfl"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True

PLACES = {
    "docs/": "/",
    "CONTRIBUTING.md": "/contributing.md",
    "CHANGELOG.md": "/changelog.md",
    "README.md": "/index.md",
    "jobs/README.md": "/reference/jobs.md",
}
"""Where the site has the files that pages link to by their places in the repository."""
LINK = re.compile(r"(\]\()(?:\.\./)*(docs/|[A-Z]+\.md|jobs/README\.md)")
FILE_AS_TEXT = re.compile(r"(?<!!)\[[\w/.-]+\.md\](?=\([^)]*\.md)")
"""A link whose text is the name of a file; the site writes the title of the page instead."""


def point_into_the_site(_app: Sphinx, _source: object, *rest: object) -> None:
    """Rewrites links of a page that is read or included; its text is the last argument."""
    text = rest[-1]
    assert isinstance(text, list)
    text[0] = FILE_AS_TEXT.sub("[]", text[0])
    text[0] = LINK.sub(lambda match: match[1] + PLACES.get(match[2], match[2]), text[0])


class Settings(SphinxDirective):
    """The reference of all settings, made from the classes of settings."""

    def run(self) -> list[nodes.Node]:
        """Parses the generated Markdown in the place of the directive."""
        from setting_texts import markdown

        return self.parse_text_to_nodes("\n".join(markdown()), allow_section_headings=True)


def inline_formula(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line of text, as MathML, which browsers draw without scripts."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def formula(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    markup = convert(node.astext(), display="block")
    self.body.append(f'<div class="formula">{markup}</div>')
    raise nodes.SkipNode


def examples_as_code(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Shows the examples below a command's help as code; `*` would otherwise begin emphasised text."""
    commands = [line.lstrip("| ").strip() for line in lines]
    commands = [line for line in commands if line and line != "Examples:"]
    lines[:] = ["Examples::", "", *(f"    {line}" for line in commands), ""] if commands else []


def setup(app: Sphinx) -> None:
    """Registers what the pages use beside the extensions."""
    app.add_directive("settings", Settings)
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("source-read", point_into_the_site)
    app.connect("include-read", point_into_the_site)
    app.connect("sphinx-click-process-epilog", examples_as_code)
