"""Figures: the drawn numbers, the house style, and files that are whole, undated, and replaced."""

import itertools
import re
from collections import Counter

import h5py
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from mpi_ntkdfl import simulation
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import drawing, fairness, plots, style, tables
from mpi_ntkdfl.analysis.plots import Request
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.outputs import Outputs
from tests.test_cli import complaint, words
from tests.test_compare import ACCURACY, read, two_seeds, write

BYTES = np.array([0, 11, 33, 66, 110])


LOOKS = {name: method.look for name, method in METHODS.items() if method.look}


def drawn(*paths, **request):
    return plots.figure(read(*paths), Request(**request))


def lines(panel):
    """Curves of a panel, without the line of the target."""
    return [line for line in panel.lines if not line.get_label().startswith("target")]


def points(line):
    return [np.asarray(each, dtype=float).tolist() for each in line.get_data()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# -------------------------------------------------------------------------------------------- numbers


def test_three_panels_by_default(tmp_path):
    figure = drawn(write(tmp_path / "a.h5"))
    by_rounds, by_bytes, by_seconds = (lines(panel)[0] for panel in figure.axes)
    assert points(by_rounds) == [[0, 1, 2, 3, 4], list(ACCURACY)]
    assert points(by_bytes) == [BYTES[1:].tolist(), list(ACCURACY[1:])]
    assert points(by_seconds) == [[0, 2, 4, 6, 8], list(ACCURACY)]
    assert [panel.get_xscale() for panel in figure.axes] == ["linear", "log", "linear"]
    assert figure.axes[0].get_ylabel() == "test accuracy of the average"
    assert [panel.get_xlabel() for panel in figure.axes] == [
        *("rounds", "protocol bytes, all clients", "wall clock without evaluation (s)"),
    ]


def test_labels_are_no_markup(tmp_path):
    """Of the user's own, and of those made of settings such as a path."""
    names = ("budget $5_a_b$", "_hidden", "a\\b", "<b>&", "$")
    paths = [write(tmp_path / f"{n}.h5", model__init=name) for n, name in enumerate(names)]
    for labels in (names, ()):
        request = Request(x=("rounds",), title=names[0], labels=labels)
        plots.write(tmp_path / "f.svg", read(*paths), request)
        with drawing.house_style():
            figure = plots.figure(read(*paths), request)
            figure.draw_without_rendering()
        for name, shown in zip(names, legend(figure), strict=True):
            assert name in shown
        assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ("accuracy", ACCURACY),
        ("client-accuracy", np.array(ACCURACY) - 0.15),
        ("loss", 2 - np.array(ACCURACY)),
        ("deviation", 0.25 * np.arange(5)),
        ("gradient-norm", 1 / np.arange(1, 6)),
    ],
)
def test_every_quantity(tmp_path, y, expected):
    figure = drawn(write(tmp_path / "a.h5"), x=("rounds",), y=y)
    (panel,) = figure.axes
    assert lines(panel)[0].get_ydata() == pytest.approx(expected)
    assert panel.get_ylabel() == METRICS[y].title


def test_seeds_become_a_mean_with_a_band_of_one_standard_deviation(tmp_path):
    figure = drawn(*two_seeds(tmp_path), x=("rounds",))
    (panel,) = figure.axes
    (line,) = lines(panel)
    both = np.array([ACCURACY, (0.2, 0.85, 0.86, 0.87, 0.88)])
    assert line.get_ydata() == pytest.approx(both.mean(axis=0))
    band = panel.collections[0].get_paths()[0].vertices
    for x, low, high in zip(
        range(5), *both.mean(axis=0) + [[-1], [1]] * both.std(0, ddof=1), strict=True
    ):
        edge = band[band[:, 0] == x][:, 1]
        assert (edge.min(), edge.max()) == pytest.approx((low, high))
    assert legend(figure) == ["NTK-DFL", "±1 SD over seeds"]


def test_one_run_has_no_band(tmp_path):
    figure = drawn(write(tmp_path / "a.h5"), x=("rounds",))
    assert len(figure.axes[0].collections) == 0
    assert legend(figure) == ["NTK-DFL"]


def test_target_title_limits_and_labels(tmp_path):
    paths = [write(tmp_path / f"{n}.h5", algorithm__lr=n / 10) for n in (1, 2)]
    request = {"target": 0.85, "title": "Some title", "ylim": (0.6, 0.9), "labels": ("one", "two")}
    figure = drawn(*paths, **request)
    assert legend(figure) == ["one", "two", "target 0.85"]
    assert figure.get_suptitle() == "Some title"
    for panel in figure.axes:
        assert panel.get_ylim() == (0.6, 0.9)
        assert [line.get_ydata()[0] for line in panel.lines if line not in lines(panel)] == [0.85]


def test_the_start_does_not_dwarf_the_rest(tmp_path):
    """The axis fits what comes after the start; the target is always in sight."""
    path = write(tmp_path / "a.h5")
    low, high = drawn(path).axes[0].get_ylim()
    assert ACCURACY[0] < low < ACCURACY[1] < ACCURACY[-1] < high < 1
    assert drawn(path, target=0.99).axes[0].get_ylim()[1] > 0.99


def test_a_run_of_nothing_but_its_start_is_drawn(tmp_path):
    figure = drawn(write(tmp_path / "a.h5", accuracy=(0.1,)))
    assert points(lines(figure.axes[0])[0]) == [[0], [0.1]]


def test_the_legend_covers_no_panel(tmp_path):
    with drawing.house_style():
        figure = drawn(*(write(tmp_path / f"{n}.h5", algorithm__lr=n / 9) for n in range(1, 5)))
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert not any(box.overlaps(panel.get_tightbbox()) for panel in figure.axes)


# ---------------------------------------------------------------------------------------------- style


def luminance(color):
    """Relative luminance of WCAG 2, from 0 to 1."""
    parts = np.array(to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_method_has_its_own_dashes_and_marker_whatever_the_colour():
    every = [*LOOKS.values(), *style.SPARE]
    assert set(LOOKS) == set(METHODS)
    assert len({look.dashes for look in every}) == len(every)
    assert len({look.marker for look in every}) == len(every)


def test_methods_of_one_colour_are_few_and_all_stand_out_on_white():
    looks = list(LOOKS.values())
    assert max(Counter(look.color for look in looks).values()) <= 2
    assert all(1.05 / (luminance(look.color) + 0.05) > 2 for look in looks)


def test_configurations_of_one_method_differ_in_grey():
    for method in LOOKS:
        looks = style.styles([method] * style.VARIANTS, LOOKS)
        assert (
            len({look.dashes for look in looks}) == len({look.fill for look in looks}) == len(looks)
        )
        greys = [luminance(look.color) for look in looks]
        assert all(1.05 / (grey + 0.05) > 1.3 for grey in greys), method


def test_a_method_looks_the_same_in_every_company():
    for some in itertools.permutations(("ntk-dfl", "dfedavg", "unheard-of"), 3):
        found = dict(zip(some, style.styles(some, LOOKS), strict=True))
        assert found["ntk-dfl"] == LOOKS["ntk-dfl"]
        assert found["dfedavg"] == LOOKS["dfedavg"]
        assert found["unheard-of"] == style.SPARE[0]


def test_more_lines_than_can_be_told_apart():
    many = style.styles(["ntk-dfl"] * style.MOST, LOOKS)
    assert len({(look.color, look.dashes) for look in many}) == style.MOST
    assert len({(look.marker, look.dashes) for look in many}) == style.MOST
    with pytest.raises(InputError, match=f"at most {style.MOST} configurations of one method"):
        style.styles(["ntk-dfl"] * (style.MOST + 1), LOOKS)
    with pytest.raises(InputError, match=f"at most {len(style.SPARE)} methods without"):
        style.styles([f"new-{n}" for n in range(len(style.SPARE) + 1)], LOOKS)


def test_lines_are_drawn_in_their_style(tmp_path):
    paths = [
        write(tmp_path / "a.h5", algorithm__name="d-psgd"),
        write(tmp_path / "b.h5"),
        write(tmp_path / "c.h5", algorithm__lr=0.5),
    ]
    figure = drawn(*paths)
    looks = style.styles(["d-psgd", "ntk-dfl", "ntk-dfl"], LOOKS)
    for panel in figure.axes:
        for line, look in zip(lines(panel), looks, strict=True):
            assert to_hex(line.get_color()).upper() == look.color
            assert line.get_marker() == look.marker
        assert to_hex(lines(panel)[2].get_markerfacecolor()) == "#ffffff", "an open marker"


# ---------------------------------------------------------------------------------------------- files


HEADS = {"pdf": b"%PDF-1.4", "png": b"\x89PNG\r\n", "svg": b"<?xml"}


@pytest.mark.parametrize("kind", HEADS)
def test_files_are_the_same_whoever_draws_them_when(tmp_path, kind):
    groups = read(*two_seeds(tmp_path))
    first, second = tmp_path / f"first.{kind}", tmp_path / f"second.{kind}"
    plots.write(first, groups, Request(x=("rounds",), target=0.85))
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.hashsalt": None}):
        plots.write(second, groups, Request(x=("rounds",), target=0.85))
        assert mpl.rcParams["font.size"] == 20
    assert first.read_bytes().startswith(HEADS[kind])
    assert first.read_bytes() == second.read_bytes()
    assert not re.search(rb"CreationDate|<dc:date>", first.read_bytes())
    if kind == "pdf":
        assert b"/FontFile2" in first.read_bytes(), "TrueType fonts, embedded"
        assert b"/Type3" not in first.read_bytes()
    if kind == "svg":
        assert b"<text" not in first.read_bytes(), "letters are paths: no fonts are needed"


def test_command(tmp_path):
    figure = tmp_path / "figure.SVG"
    options = ["--x", "seconds", "--y", "loss", "--title", "T", "--ylim", 0, 2, "--label", "one"]
    code, out, err = words("plot", write(tmp_path / "a.h5"), "-o", figure, *options)
    assert (code, out, err) == (0, f"{figure}\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "figure.SVG"]


def test_command_warns_as_compare_does(tmp_path):
    paths = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", topology__degree=1, clients=5)
    code, _, err = words("plot", *paths, "-o", tmp_path / "figure.svg", "--x", "rounds")
    assert (code, err) == (0, f"warning: {fairness.warnings(read(*paths))[0]}\n")


def test_an_old_figure_is_replaced_or_left_whole(tmp_path, monkeypatch):
    path, record = tmp_path / "figure.svg", write(tmp_path / "a.h5")
    path.write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", failing)
    assert "cannot write" in complaint("plot", record, "-o", path, "--overwrite")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "figure.svg"]
    monkeypatch.undo()
    assert words("plot", record, "-o", path, "--overwrite", "--x", "rounds")[0] == 0
    assert path.read_text().startswith("<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "figure.svg"]


def failing(_, path, **__):
    path.write_bytes(b"half a figu")
    raise OSError(28, "No space left on device")


def test_bad_words(tmp_path):
    record = write(tmp_path / "a.h5")
    with_option = {
        ("-o", tmp_path / "a.jpg"): ".pdf, .png, .svg, got",
        ("-o", tmp_path / "a"): ".pdf, .png, .svg, got",
        ("-o", record): "is never replaced",
        ("-o", tmp_path / "no" / "a.pdf"): "cannot write .*No such file or directory",
        ("-o", "/proc/a.pdf"): "cannot write",
        ("-o", tmp_path / ("n" * 300 + ".pdf")): "may have 255 bytes",
        ("-o", "a.pdf", "--label", "x", "--label", "y"): "once for each of 1 configurations",
        ("-o", "a.pdf", "--y", "loss", "--target", 0.8): "--target is an accuracy",
        ("-o", "a.pdf", "--ylim", 1, 0): "LOW below HIGH",
        ("-o", "a.pdf", "--y", "colour"): "colour",
        (): "Missing option",
    }
    for options, message in with_option.items():
        assert re.search(message, complaint("plot", record, *options)), message
    assert "no record at" in complaint("plot", tmp_path / "no.h5", "-o", "a.pdf")


def test_nothing_to_draw(tmp_path):
    record = write(tmp_path / "a.h5", accuracy=(np.nan,) * 3)
    found = complaint("plot", record, "-o", tmp_path / "a.pdf", "--y", "client-accuracy")
    assert "no client-accuracy to draw" in found
    record = write(tmp_path / "b.h5")
    found = complaint("plot", record, "-o", tmp_path / "a.pdf", "--x", "simulated")
    assert "no simulated to draw in" in found
    assert "another --x" in found
    assert not (tmp_path / "a.pdf").exists()


# ------------------------------------------------------------------------- ticks, markers, percentiles


def texts_overlap(labels):
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("scale", "first"), [(1, 40), (60, 1), (3_000, 40), (10**6, 1), (10**8, 40)]
)
def test_byte_ticks_never_overlap(tmp_path, scale, first):
    """In the narrow panels of a page, over half a decade and over several."""
    path = write(tmp_path / "a.h5", scale=scale)
    with h5py.File(path, "r+") as file:
        file["traffic/protocol_bytes"][0] = file["traffic/protocol_bytes"][0] * first
    with drawing.house_style():
        figure = drawn(path)
        figure.draw_without_rendering()
        axis = figure.axes[1].xaxis
        low, high = figure.axes[1].get_xlim()
        shown = [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        assert len(shown) >= 2
        assert not texts_overlap(shown)


def test_a_panel_without_points_says_so(tmp_path):
    """A run of one rank gives no bytes to MPI, and a logarithmic axis has no zero."""
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["traffic/mpi_bytes"][:] = 0
    with drawing.house_style():
        figure = drawn(path, x=("mpi-bytes", "bytes", "busiest-bytes"))
        figure.draw_without_rendering()
        empty, full, right = figure.axes
        assert [text.get_text() for text in empty.texts] == ["no values to show"]
        assert not len(empty.get_xticks())
        assert not full.texts
        # Names of axes are not wider than their panels, also at the right end of the page.
        for panel in (empty, full, right):
            name = panel.xaxis.label.get_window_extent()
            assert figure.bbox.x0 < name.x0 < name.x1 < figure.bbox.x1


def test_markers_are_even_across_the_panel(tmp_path):
    """Also where a curve rises steeply at first, which takes most of its length."""
    accuracy = [0.1, *np.linspace(0.8, 0.9, 60)]
    figure = drawn(write(tmp_path / "a.h5", accuracy=accuracy), x=("rounds",))
    marked = lines(figure.axes[0])[0].get_markevery()
    assert len(marked) == 10
    assert set(np.diff(marked)) == {6}


def test_clients_that_were_tested_less_often_than_the_average(tmp_path):
    """A line connects the rows that exist; `show` says that the others do not."""
    small = {"rounds": 5, "clients": 4, "topology": {"degree": 2}, "partition": {"samples": 10}}
    cadence = {"evaluation": {"clients_every": 2, "sample": 50}, "algorithm": {"name": "d-psgd"}}
    path = tmp_path / "run.h5"
    configuration = parse([*read_source("quickstart"), small, cadence])
    simulation.run(configuration, SoloWorld(), Outputs(path))
    for metric, rounds in (("client-accuracy", [0, 2, 4, 5]), ("accuracy", [0, 1, 2, 3, 4, 5])):
        (panel,) = drawn(path, x=("rounds",), y=metric).axes
        across, up = points(lines(panel)[0])
        assert across == rounds
        assert np.isfinite(up).all()
    run = tables.read(path)
    rows = np.isnan(run["client-accuracy"]).all(axis=1)
    assert rows.tolist() == [False, True, False, True, False, False]
    assert not np.isnan(run["client-accuracy"][~rows]).any()
    told = tables.summary(run)
    assert "nan" not in told
    assert told.count("  -") >= 2
    assert "clients tested on 50 test samples, drawn for every evaluation" in told
    assert "  std. error" in told


def test_percentiles_of_clients_are_a_band(tmp_path):
    path = write(tmp_path / "a.h5")
    figure = drawn(path, x=("rounds",), y="client-accuracy", percentiles=(0, 100))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    for x, accuracy in enumerate(ACCURACY):
        edge = band[band[:, 0] == x][:, 1]
        assert (edge.min(), edge.max()) == pytest.approx((accuracy - 0.3, accuracy))
    assert legend(figure)[-1] == "0th to 100th percentile of clients"
    target = tmp_path / "f.svg"
    line = ["plot", path, "-o", target, "--percentiles"]
    assert "unknown metric by client 'accuracy'" in complaint(*line, 10, 90)
    assert "needs LOW below HIGH" in complaint(*line, 90, 10)
