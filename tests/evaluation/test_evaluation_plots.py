"""The accuracy–time curve: reading, drawing, and errors."""

import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from helpers.sweep_files import mue_rows, write_methods, write_sweep

from ofa_exit.cli.plot import main
from ofa_exit.evaluation.figures.families import FAMILIES, ORDER, panels
from ofa_exit.evaluation.figures.methods import read_methods
from ofa_exit.evaluation.figures.plots import (
    COLOURS,
    CurvePoint,
    _figure,
    best,
    method_points,
    plot_curve,
    read_points,
    run_style,
)

HEADER = "run,cider,expected_time_reduction,flop_reduction,measured_time_reduction,seed\n"
ROWS = "MuE,120.5,0.4,0.3,0.25,1\nMuE,130,0.1,0.05,,1\nOFA,128,0,0,0,1\n"


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.csv"
    path.write_text(HEADER + ROWS)
    return path


def test_points(sweep):
    points = read_points(sweep, "cider")
    assert [point.run for point in points] == ["MuE", "MuE", "OFA"]
    assert points[0].quality == 120.5
    assert points[1].savings["measured_time_reduction"] is None


def test_files_are_reproducible(sweep, tmp_path):
    points = read_points(sweep, "cider")
    first = [path.read_bytes() for path in plot_curve(points, "cider", tmp_path / "one")]
    again = [path.read_bytes() for path in plot_curve(points, "cider", tmp_path / "two")]
    assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert first[1].find(b"<dc:date>") == -1
    ET.fromstring(first[1])
    fewer = [path.read_bytes() for path in plot_curve(points[:2], "cider", tmp_path / "three")]
    assert fewer[1] != first[1]


def test_points_without_reduction_are_not_drawn(sweep):
    figure = _figure(read_points(sweep, "cider"), "cider")
    drawn = [axis.lines[0].get_xydata().tolist() for axis in figure.axes]
    assert drawn[0] == [[10, 130], [40, 120.5]]
    assert drawn[2] == [[25, 120.5]]


def test_only_undominated_settings_are_joined():
    places = [(0.0, 100.0), (20.0, 80.0), (30.0, 101.0), (40.0, 90.0), (40.0, 85.0)]
    points = [CurvePoint("m", quality, {"flop_reduction": saved}) for saved, quality in places]
    assert best(points, "flop_reduction") == [points[2], points[3]]


def test_lines_join_what_is_best_on_validation(tmp_path):
    """On the test TEXT beats full depth, and IMAGE beats TEXT: validation knows neither."""
    write_methods(tmp_path)
    for seed in ("1", "2"):
        rows = mue_rows(-50)
        rows[2]["CIDEr"], rows[3]["CIDEr"] = 90, 80
        write_sweep(tmp_path / f"mue@{seed}" / "test.csv", rows)
    points = method_points(read_methods(tmp_path, ["mue"]), "test", "CIDEr", ["flop_reduction"])
    line, faint = (line.get_xydata() for line in _figure(points, "CIDEr").axes[0].lines)
    assert line == pytest.approx(np.array([[0, 48], [10, 80], [50, 41]]))
    assert faint[:, 1].tolist() == [48, 80, 90, 10, 41]


def test_other_axes(tmp_path, capsys):
    """As in BLIPEE's Figure 4b; a reduction is drawn in percent, a speed-up as it is."""
    path = tmp_path / "sweep.csv"
    path.write_text("run,cider,parameter_speedup,flop_reduction\nsupervised,80,1.5,-0.4\n")
    axes = ["parameter_speedup", "flop_reduction"]
    figure = _figure(read_points(path, "cider", axes), "cider")
    drawn = [axis.lines[0].get_xydata().tolist() for axis in figure.axes]
    assert drawn == [[[1.5, 80]], [[-40, 80]]]
    command = [str(path), "--quality", "cider", "--out", str(tmp_path / "curve"), "--axes"]
    assert main([*command, "parameter_speedup"]) == 0
    with pytest.raises(SystemExit):
        main([*command, "parameters"])
    assert "--axes parameters: choose from" in capsys.readouterr().err


def test_command(sweep, tmp_path, capsys):
    out = tmp_path / "curve"
    assert main([str(sweep), "--quality", "cider", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [f"{out}.png", f"{out}.svg"]
    assert main([str(sweep), "--quality", "accuracy", "--out", str(out)]) == 2
    assert "line 1: no column accuracy" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.csv"), "--quality", "cider", "--out", str(out)]) == 2
    assert "absent.csv" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["much", "nan", ""])
def test_invalid_number_names_its_place(sweep, value):
    sweep.write_text(f"{HEADER}{ROWS}MuE,{value},0,0,0,1\n")
    with pytest.raises(ValueError, match=r"sweep\.csv, line 5, column cider"):
        read_points(sweep, "cider")


def test_an_empty_sweep_raises(sweep):
    sweep.write_text(HEADER)
    with pytest.raises(ValueError, match=r"sweep\.csv.*no row"):
        read_points(sweep, "cider")


def test_without_matplotlib(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(sweep), "--quality", "cider", "--out", str(tmp_path / "curve")]) == 2
    assert "needs matplotlib" in capsys.readouterr().err


def test_twelve_methods_are_told_apart(tmp_path):
    """By colour and line where colours are seen, by the marker alone where they are not."""
    styles = [run_style(number) for number in range(14)]
    assert len({style["marker"] for style in styles}) == 14
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 14
    saved = {"flop_reduction": 10.0}
    figure = _figure([CurvePoint(f"m{n}", 100 + n, saved) for n in range(12)], "cider")
    assert legends(figure) == [[f"m{n}" for n in range(12)]]


def legends(figure) -> list[list[str]]:
    """Each is beside the last panel of its row, whatever that shows."""
    found = [legend for axis in figure.axes if (legend := axis.get_legend())]
    return [[text.get_text() for text in legend.get_texts()] for legend in found]


def test_many_methods_are_drawn_by_family():
    """With the baseline in each row, and no colour twice in a panel."""
    names = [*ORDER, "berxit"]
    saved = {"flop_reduction": 10.0, "measured_time_reduction": None}
    points = [CurvePoint(name, 100 + n, saved) for n, name in enumerate(names)]
    rows = panels(names, "plain")
    assert list(rows) == [*FAMILIES, "others"] and rows["others"] == ["plain", "berxit"]
    figure = _figure(points, "CIDEr", rows)
    assert legends(figure) == list(rows.values())
    assert [axis.get_title(loc="left") for axis in figure.axes[::2]] == list(rows)
    for axis in figure.axes:
        colours = [line.get_color() for line in axis.lines if line.get_linestyle() != "None"]
        assert len(colours) == len(set(colours)) <= len(COLOURS)
    assert panels(names[:7], "plain") == {"": names[:7]}


@pytest.mark.parametrize(("methods", "height"), [(3, 3.6), (18, 18 * 0.24)])
def test_the_legend_has_room(methods, height):
    saved = {"flop_reduction": 10.0}
    points = [CurvePoint(f"m{n}", 100 + n, saved) for n in range(methods)]
    assert _figure(points, "cider").get_figheight() == pytest.approx(height)


def test_seeds_of_a_method_are_one_curve(tmp_path):
    methods = read_methods(write_methods(tmp_path), ["mue"])
    points = method_points(methods, "test", "CIDEr", ["expected_time_reduction", "flop_reduction"])
    assert [point.run for point in points] == ["mue"] * 5
    assert points[3].quality == 48  # of 47 and 49
    assert points[3].savings == {
        "expected_time_reduction": pytest.approx(100 / 6),
        "flop_reduction": pytest.approx(10),
    }
