"""The shape of the code: layers, dependencies, and what no module may do."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.cli.main import COMMANDS, cli
from mpi_ntkdfl.federation.codecs import CODECS
from mpi_ntkdfl.metrics import METRICS
from tests.conftest import ROOT

PACKAGE = ROOT / "mpi_ntkdfl"

# A module imports only from its own row and the rows above. This is docs/design.md, "Rooms".
LAYERS = [
    ["runtime"],
    ["presets"],
    ["config"],
    ["data", "topology", "model", "environment"],
    ["ntk"],
    ["comm"],
    ["federation"],
    ["algorithms"],
    ["planning", "evaluate", "metrics"],
    ["storage"],
    ["assembly"],
    ["simulation"],
    ["analysis"],
    ["audit"],
    ["studies"],
    ["loggers"],
    ["api"],
    ["cli"],
    ["__main__", "__init__"],
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(module: Path) -> str:
    """The layer's name of a file: its folder below the package, or its own name."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes(module: Path) -> list[ast.AST]:
    """The syntax tree of a file, node by node."""
    return list(ast.walk(ast.parse(module.read_text())))


@cache
def imports(module: Path) -> set[str]:
    """Every module a file imports, wherever in the file, as dotted names."""
    found = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_imports_point_upwards():
    for module in MODULES:
        for name in imports(module):
            parts = name.split(".")
            if parts[0] == "mpi_ntkdfl" and len(parts) > 1 and parts[1] in ROW:
                assert ROW[parts[1]] <= ROW[unit(module)], f"{module} imports {name}"


def test_every_module_has_a_layer():
    assert {unit(module) for module in MODULES} == set(ROW)


def test_the_rooms_of_the_design_are_these():
    rows = re.findall(
        r"^\| (\d+) \| (`.*?`) \|", (ROOT / "docs/design.md").read_text(), re.MULTILINE
    )
    rooms = {
        name.removesuffix(".py").rstrip("/"): int(row) - 1
        for row, names in rows
        for name in re.findall(r"`(.*?)`", names)
    }
    assert rooms == ROW


def test_only_comm_imports_mpi():
    users = {unit(m) for m in MODULES if any(n.split(".")[0] == "mpi4py" for n in imports(m))}
    assert users == {"comm"}


def test_mathematics_and_analysis_know_no_ranks():
    for module in MODULES:
        if unit(module) in ("ntk", "model", "topology", "data", "analysis"):
            assert not any(name.startswith("mpi_ntkdfl.comm") for name in imports(module)), module


def test_networks_are_known_by_their_protocol():
    """Layer widths and classes of networks are the business of their own rooms."""
    own = [PACKAGE / "model" / room for room in ("mlp", "module", "kinds", "architectures")]
    named = [m for m in MODULES if re.search(r"\bMLP\b", m.read_text())]
    assert len(named) <= 3, named
    for module in MODULES:
        if module == PACKAGE / "__init__.py" or module.parent in own:  # public names
            continue
        rooms = tuple(f"mpi_ntkdfl.model.{room.name}" for room in own if room.name != "kinds")
        assert not any(name.startswith(rooms) for name in imports(module)), module
        assert not re.search(r"\.widths\b", module.read_text()), module


def test_the_table_of_networks_needs_no_torch():
    """Settings are read and networks registered where nothing is computed."""
    program = "import sys, mpi_ntkdfl.model.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_analysis_needs_no_torch():
    for module in MODULES:
        if unit(module) == "analysis":
            assert "torch" not in {name.split(".")[0] for name in imports(module)}


def test_no_global_randomness_device_literal_or_pickle():
    for module in MODULES:
        text = module.read_text()
        drawn = re.search(
            r"np\.random\.(?!Generator|Philox|SeedSequence|MT19937|get_state|set_state)\w+\(", text
        )
        assert not drawn, f"{module}: {drawn[0]}: use runtime.seeds.generator"
        assert not re.search(r"torch\.manual_seed|\.cuda\(", text), module
        pickled = re.search(r"^\s*import pickle|pickle\.load|allow_pickle=True", text, re.MULTILINE)
        assert not pickled, module
        assert "weights_only=False" not in text, module


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = ("FILE.py", "mine.py")
"""Files that a reader makes, as the pages say."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_files_and_functions_that_exist(page):
    """`room/file.py`, `file.py`, `room/`, `room.module.name` and `test_file.py::test_name`."""
    text = page.read_text()
    files = {path.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/*.*")}
    made = {*MADE, *re.findall(r"^# ([\w-]+\.py)$", text, re.MULTILINE)}
    for name in re.findall(r"[\w./-]*[\w-]\.(?:py|c|sh|sbatch)\b(?!\.)", text):
        inside = [file for file in files if f"/{file}".endswith(f"/{name.removeprefix('../')}")]
        assert inside or name in made or (ROOT / name).exists(), name
    for name in re.findall(r"`(\w[\w-]*/(?:\w+/)*)`", text):
        assert (PACKAGE / name).is_dir() or (ROOT / name).is_dir(), name
    for name in re.findall(r"`((?:\w+\.){2,}\w+)`", text):
        if name.split(".")[0] in ROW:
            pkgutil.resolve_name(f"mpi_ntkdfl.{name}")
    for file, test in re.findall(r"(test_\w+\.py)::(\w+)", text):
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
    for target, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)#?([\w-]*)\)", text):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, f"{target}#{anchor}"


def test_every_page_is_in_the_contents_of_the_site():
    """The site's builder refuses pages that no `toctree` in docs/index.md names."""
    contents = (ROOT / "docs" / "index.md").read_text()
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", contents, re.MULTILINE | re.DOTALL)
    named = {line for tree in trees for line in tree.splitlines() if line and line[0] != ":"}
    pages = (page.relative_to(ROOT / "docs").with_suffix("") for page in PAGES[2:])
    assert named == {page.as_posix() for page in pages} - {"index"}


def strings(module: Path) -> list[str]:
    """String literals of a file, without those that stand as a statement, such as docstrings."""
    statements = {id(node.value) for node in nodes(module) if isinstance(node, ast.Expr)}
    constants = (node for node in nodes(module) if isinstance(node, ast.Constant))
    return [c.value for c in constants if isinstance(c.value, str) and id(c) not in statements]


def test_a_name_stands_in_its_own_file_only():
    """No other file names a registry's entry or imports a method, so users' entries are their equals."""
    methods = {entry.__module__ for entry in METHODS.values()}
    for module in MODULES:
        if unit(module) != "algorithms":
            assert not imports(module) & methods, f"{module} imports a method"
    own = {
        **{name: sys.modules[entry.__module__].__file__ for name, entry in METHODS.items()},
        **{name: sys.modules[entry.__module__].__file__ for name, entry in CODECS.items()},
        **dict.fromkeys(METRICS, PACKAGE / "metrics.py"),
        **{metric.dataset: PACKAGE / "metrics.py" for metric in METRICS.values() if metric.dataset},
    }
    # A setting has the name of a metric, and a word of other programs the name of another.
    del own["rounds"], own["seconds"]
    for module in MODULES:
        for text in strings(module):
            for name, home in own.items():
                # A common word counts only where it is the whole text.
                named = text == name or (
                    "-" in name and re.search(rf"(?<![\w-]){name}(?![\w-])", text)
                )
                assert not named or Path(home) == module, f"{module} names {name}: {text!r}"


def requirements(text: str) -> dict[str, str]:
    """Lower bounds by canonical name in a text that quotes `name>=version`."""
    found = re.findall(r"([A-Za-z][\w-]*)>=([\d.]+)", text)
    same = {"pytorch": "torch", "pyyaml": "pyyaml"}
    return {same.get(name.lower(), name.lower()): version for name, version in found}


def test_environment_yml_asks_for_what_setup_py_asks():
    text = (ROOT / "setup.py").read_text()
    required = requirements(text[text.index("install_requires") : text.index("extras_require")])
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = requirements("\n".join(line for line in environment if isinstance(line, str)))
    python = re.search(r'python_requires=">=([\d.]+)"', text)[1]
    assert conda.pop("python") == python
    assert conda == required


def test_constraints_cover_every_requirement_within_its_bound():
    bounds = requirements((ROOT / "setup.py").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert pinned["torch"] == "2.13.0"
    for name, bound in bounds.items():
        if name == "setuptools":
            continue
        numbers = [tuple(map(int, v.split("."))) for v in (pinned[name], bound)]
        assert numbers[0] >= numbers[1], name


def test_every_import_is_a_declared_dependency():
    declared = set(requirements((ROOT / "setup.py").read_text())) | {"mpi_ntkdfl"}
    alias = {"yaml": "pyyaml", "sklearn": "scikit-learn"}

    for module in MODULES:
        for name in {n.split(".")[0] for n in imports(module)} - set(sys.stdlib_module_names):
            assert alias.get(name, name) in declared, f"{module} imports {name}"


def test_files_and_functions_stay_readable():
    assert len(list(PACKAGE.glob("*.py"))) <= 8
    for file in (*MODULES, *PACKAGE.rglob("*.[ch]")):
        lines = len(file.read_text().splitlines())
        assert lines <= 400, f"{file} has {lines} lines: divide it by its parts"
    for module in MODULES:
        for node in nodes(module):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 85, f"{module}: {node.name}"


def test_the_table_of_commands_says_what_their_help_says():
    """`--help` lists the commands without importing them."""
    for name, (_, said) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command.name == name
        assert " ".join(command.help.split("\n\n")[0].split()) == said


LOOKERS = [
    *("--help", "show missing.h5", "compare missing.h5"),
    *("presets", "presets quickstart", "show --help", "compare --help"),
    *("plot missing.h5 -o x.pdf", "study list"),
    *("scaling report missing.h5", "scaling predict missing.h5 --ranks 4"),
    "export missing.h5 --average x.pt",  # the last, since it alone loads torch
]
LOOKING = """
import sys
from mpi_ntkdfl.cli.main import main
for words in sys.argv[1:]:
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit:
        pass
    heavy = {"numpy", "h5py", "pydantic", "scipy", "networkx", "torch", "mpi4py", "matplotlib"}
    print("loaded:", *sorted(heavy & set(sys.modules)), flush=True)
"""


def test_looking_at_runs_starts_no_mpi_and_mostly_no_torch():
    """On a login node MPI may refuse to start; torch and matplotlib take seconds to load.

    Modules stay loaded, so each command shows what it adds to those before it.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOOKING, *LOOKERS], capture_output=True, text=True, check=False
    )
    loaded = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert loaded[:3] == [[], ["h5py", "numpy"], ["h5py", "numpy"]], done.stdout + done.stderr
    light = {"h5py", "numpy", "pydantic"}
    assert all(set(each) <= light for each in loaded[:-1]), done.stdout + done.stderr
    assert set(loaded[-1]) <= light | {"torch"}, done.stdout + done.stderr
