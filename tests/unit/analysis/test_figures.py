"""What is drawn: one unit per axis, lines from two points on, hatched where nothing can be concluded."""

import sys

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, ok, run_process
from matplotlib.figure import Figure

from dejavu_utils.analysis import figures


def drawn(draw, frame):
    """The panels of a figure that is not written."""
    figure = Figure()
    draw(figures.Plot(figure, frame, 1))
    return figure.axes


def rows_of(x, values, interpretable=1.0, **others):
    frame = pd.DataFrame({x: values, "pct_confidence": 100.0, "interpretable": interpretable, **others})
    for name, value in (("target", 0.4), ("reference", 0.2)):
        frame[f"{name}_acc"], frame[f"{name}_low"], frame[f"{name}_high"] = value, value - 0.05, value + 0.05
    frame["score"], frame["score_low"], frame["score_high"] = 0.2, 0.15, 0.25
    return frame


def line_styles(axes):
    return {line.get_linestyle() for line in axes.get_lines() if len(line.get_xdata())}  # without the legend's


def test_one_point_is_a_marker_and_two_are_a_line():
    (axes,) = drawn(figures.draw_accuracies, rows_of("dataset", [300]))
    assert line_styles(axes) == {"None"}
    (axes,) = drawn(figures.draw_accuracies, rows_of("dataset", [100, 300]))
    assert line_styles(axes) == {"-", "--"}


def test_chance_and_ceiling_are_lines_where_they_are_known():
    frame, heights = rows_of("epoch", [50, 100]), {"chance": 0.11, "ceiling": 0.93}
    for known in ([], ["chance"], ["chance", "ceiling"]):
        (axes,) = drawn(figures.draw_accuracies, frame.assign(**{name: heights[name] for name in known}))
        lines = [set(line.get_ydata()) for line in axes.get_lines()]
        assert [{height} in lines for height in heights.values()] == ["chance" in known, "ceiling" in known]


def test_what_is_not_interpretable_is_hatched():
    for interpretable, hatched in (([1.0, 1.0, np.nan], 0), ([0.0, 1.0, 0.0], 2)):
        frame = rows_of("epoch", [50, 100, 300], interpretable)
        (axes,) = drawn(figures.draw_accuracies, frame)
        spans = [patch for patch in axes.patches if patch.get_hatch()]
        assert len(spans) == hatched
    assert spans[0].get_x() < 50 and spans[0].get_x() + spans[0].get_width() == pytest.approx(75)


def test_differences_are_not_drawn_on_the_axis_of_accuracies():
    accuracies, scores = drawn(figures.draw_layers, rows_of("layer", ["backbone", "projector"], chance=0.2))
    assert scores.get_ylabel() == "déjà vu score" and "accuracy" in accuracies.get_ylabel()
    assert accuracies.dataLim.y1 == pytest.approx(0.45) and scores.dataLim.y1 == pytest.approx(0.25)
    rows = []
    for epoch in (1, 2):
        for instrument, of, value in (("deja_vu", "100", 0.2), ("sslmem", "projector", 1.5)):
            estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
            rows.append({"epoch": epoch, "instrument": instrument, "of": of, **estimate})
    scores, distances = drawn(figures.draw_epochs, pd.DataFrame(rows))
    assert scores.dataLim.y1 == pytest.approx(0.3) and distances.dataLim.y1 == pytest.approx(1.6)


def test_words_on_the_axis():
    frame = rows_of("param", ["resnet18", "resnet50"])
    (axes,) = drawn(figures.draw_accuracies, frame)
    assert [list(line.get_xdata()) for line in axes.get_lines()[:2]] == [[0, 1], [0, 1]]


def test_written_figures_have_a_caption_and_a_legend(tmp_path):
    frame = rows_of("epoch", [50], interpretable=0.0)
    for name, caption in (("with", "simclr, projector, k = 50, n = 450"), ("without", "")):
        figures.save_figure(tmp_path / name, figures.draw_accuracies, frame, caption)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(written) == 8 and written["with.png"] != written["without.png"] != written["without_legend.png"]


def test_no_matplotlibrc_and_no_backend_changes_a_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text("savefig.dpi: 3\nfont.size: 30\n")
    frame = rows_of("dataset", [100, 300])
    figures.save_figure(tmp_path / "here", figures.draw_accuracies, frame)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    code = "import pandas; from dejavu_utils.analysis import figures\n"
    code += "figures.save_figure('there', figures.draw_accuracies, pandas.read_csv('rows.csv'))"
    ok(run_process(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=ROOT, MPLBACKEND="absent"))
    assert (tmp_path / "here_legend.png").read_bytes() == (tmp_path / "there_legend.png").read_bytes()
