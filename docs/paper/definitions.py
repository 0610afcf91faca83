"""Writes the studies of the paper's figures, with the authors' partitions, into the current folder.

    python definitions.py
    python -m mpi_ntkdfl study run convergence.yaml
    python -m mpi_ntkdfl study report convergence.yaml --html figures.html

The folder `partitions` must hold the authors' partitions, such as `fashion-mnist_300_dirichlet0.1_0.npz`.

Each study is the one of the package at its paper scale, with the methods and variants that the paper
shows, and one seed. NTK-DFL's integrator has a tolerance of 1e-3, and clients are tested in every tenth
round; both save time.

The studies whose names end in `-seeds` repeat the runs of methods that take less than ten minutes. They
have three seeds, and every seed draws a partition of its own.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

PARTITION = "partitions/{data}_300_{shares}_0.npz"
GIVEN = {"fashion-mnist": (0.1, 0.2, 0.4, 0.5), "mnist": (0.1, 0.5)}
"""The values of alpha for which there are partitions of the authors; IID data have one as well."""

MAIN = ("NTK-DFL", "DFedAvg", "D-PSGD")
QUICK = ("DFedAvg", "D-PSGD", "DFedAvgM", "DFedSAM", "DisPFL")
"""The methods whose runs take less than ten minutes on one core."""

STUDIES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "convergence": ("convergence", {"method": MAIN}),
    "baselines": (
        "convergence",
        {"method": (*MAIN, "DFedAvgM", "DFedSAM", "DisPFL"), "shares": ("alpha 0.1",)},
    ),
    "heterogeneity": (
        "heterogeneity",
        {"method": MAIN[:2], "alpha": tuple(f"alpha 0.{a}" for a in range(1, 6))},
    ),
    "sparsity": ("sparsity", {"graph": tuple(f"regular {kappa}" for kappa in range(2, 8))}),
    **{name: (name, {}) for name in ("dynamics", "starts", "averaging", "mnist")},
    "late-rounds": (
        "late-rounds",
        {
            "settings": (
                "paper's",
                "decay 0.04",
                "steps to 1600",
                "always 800 steps",
                "average by samples",
            )
        },
    ),
    "theory": ("theory", {"steps": ("T = 100", "T = 200", "T = 800", "DFedAvg")}),
}
"""By name: the study of the package, and the variants that are kept, by axis."""

REPEATED = (
    *("baselines", "convergence", "heterogeneity", "sparsity"),
    *("dynamics", "starts", "mnist", "theory"),
)
"""The studies whose runs of quick methods are repeated with three seeds."""


def partition(shares: dict[str, Any], data: str) -> dict[str, Any]:
    """The authors' file for a partition, or the partition itself if they have none."""
    alpha = shares.get("alpha")
    if shares.get("kind") != "iid" and alpha not in GIVEN[data]:
        return shares
    name = "iid" if alpha is None else f"dirichlet{alpha}"
    return {"kind": "file", "path": PARTITION.format(data=data, shares=name)}


def reduced(name: str, seeds: int = 1) -> dict[str, Any]:
    """The definition of one of `STUDIES`.

    Args:
        name: of the study.
        seeds: number of seeds; one seed has the authors' partition, and several seeds draw their own.
    """
    source, kept = STUDIES[name]
    given = partition if seeds == 1 else lambda shares, data: shares
    folder = resources.files("mpi_ntkdfl.studies") / "definitions"
    study: dict[str, Any] = yaml.safe_load((folder / f"{source}.yaml").read_text(encoding="utf-8"))
    paper = study["scales"]["paper"] | {
        "seeds": seeds,
        "settings": {"evaluation": {"clients_every": 10}},
    }
    study["scales"] = {"paper": paper}
    data = "mnist" if name == "mnist" else "fashion-mnist"
    study["settings"] = {"partition": given({"kind": "dirichlet", "alpha": 0.1}, data)}
    for place, axis in enumerate(study["axes"]):
        axis["variants"] = [
            variant
            for variant in axis["variants"]
            if variant.pop("only", "paper") == "paper"
            and variant["label"] in kept.get(axis["name"], (variant["label"],))
            and (seeds == 1 or place or variant["label"] in QUICK)
        ]
        for variant in axis["variants"]:
            settings = variant.setdefault("settings", {})
            variant.pop("at", None)
            if "partition" in settings:
                settings["partition"] = given(settings["partition"], data)
            if place == 0:
                algorithm = settings.setdefault("algorithm", {})
                if algorithm.get("name", "ntk-dfl") == "ntk-dfl":
                    algorithm["tolerance"] = 1e-3
    labels = {variant["label"] for axis in study["axes"] for variant in axis["variants"]}
    for figure in study["figures"]:
        published = figure.get("published", {"lines": []})
        published["lines"] = [
            line
            for line in published["lines"]
            if line["line"].split(", ")[0] in labels and line["panel"] in labels | set(figure["y"])
        ]
        if source == "convergence":
            figure["limits"] = [0.7, 0.87]
    if name == "baselines":
        study["title"] = "All baselines at alpha 0.1"
    if source == "convergence":  # seconds would compare devices, if only some runs used a GPU
        study["figures"] = [figure for figure in study["figures"] if figure["name"] != "seconds"]
    if name == "sparsity":
        study["axes"][1]["log"] = False
    return study


if __name__ == "__main__":
    studies = {name: reduced(name) for name in STUDIES}
    studies |= {f"{name}-seeds": reduced(name, seeds=3) for name in REPEATED}
    for name, study in studies.items():
        text = yaml.safe_dump(study, sort_keys=False)
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
