import json
import math

import numpy as np
import pytest

from detr_d2.utils.errors import UserError
from detr_d2.visualization import plot_curves, plot_training, read_metrics
from detr_d2.visualization.curves import smooth


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run's metrics.json: a folder's name and its lines, as dicts or as text."""

    def make(name: str, *lines: dict | str):
        folder = tmp_path / name
        folder.mkdir()
        texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
        (folder / "metrics.json").write_text("".join(texts))
        return folder

    return make


def loss(iteration: int, value: float, **others: float) -> dict:
    return {"iteration": iteration, "total_loss": value, **others}


def series(run, key="total_loss"):
    iterations, values = read_metrics(run)[key]
    return list(zip(iterations.tolist(), values.tolist(), strict=True))


def test_metrics_by_key(make_run):
    run = make_run("run", loss(19, 3.0), {"iteration": 29, "bbox/AP": 1.5}, loss(39, 2.0, lr=1e-4))
    assert series(run) == [(19, 3.0), (39, 2.0)]
    assert series(run, "bbox/AP") == [(29, 1.5)]
    assert series(run / "metrics.json", "lr") == [(39, 1e-4)]


def test_a_resumed_run_replaces_what_it_did_again(make_run):
    """Up to 60, then resumed from 20: the 60 belongs to the abandoned run."""
    run = make_run("run", loss(20, 3.0), loss(40, 2.0), loss(60, 1.0), loss(40, 2.5))
    assert series(run) == [(20, 3.0), (40, 2.5)]


def test_an_evaluation_survives_a_late_line(make_run):
    """Detectron2 may write an evaluation's line before that of the losses of an earlier iteration."""
    run = make_run("run", {"iteration": 40, "bbox/AP": 7.0}, loss(39, 2.0))
    assert series(run, "bbox/AP") == [(40, 7.0)]


def test_a_line_being_written_is_left_out(make_run, caplog):
    run = make_run("run", loss(20, 3.0), '{"iteration": 40, "total_lo')
    assert series(run) == [(20, 3.0)]
    assert not caplog.records


def test_broken_lines_are_counted(make_run, caplog):
    run = make_run("run", loss(20, 3.0), '{"iteration": 40, "tot{"iteration": 40}\n', loss(60, 1.0))
    assert series(run) == [(20, 3.0), (60, 1.0)]
    assert "left out 1 lines" in caplog.text


def test_nan_leaves_a_gap(make_run):
    run = make_run("run", loss(20, 3.0), loss(40, math.nan), loss(60, 1.0))
    assert np.isnan(read_metrics(run)["total_loss"][1]).tolist() == [False, True, False]
    plot_training({"run": run}, smoothing=3).savefig(run / "curves.png")


@pytest.mark.parametrize(
    ("window", "expected"),
    [(1, [1, 2, 6, 3]), (3, [1.5, 3, 11 / 3, 4.5]), (2, [1.5, 4, 4.5, 3]), (100, [3, 3, 3, 3])],
)
def test_smoothing(window, expected):
    assert smooth(np.array([1.0, 2.0, 6.0, 3.0]), window).tolist() == pytest.approx(expected)


def test_smoothing_passes_over_nan():
    smoothed = smooth(np.array([1.0, math.nan, 5.0, 7.0]), 3)
    assert smoothed.tolist() == pytest.approx([1.0, math.nan, 6.0, 6.0], nan_ok=True)


def test_panels_and_legend(make_run):
    first = make_run("first", loss(20, 3.0, loss_ce=1.0), {"iteration": 29, "bbox/AP": 1.5})
    second = make_run("second", loss(20, 4.0))
    figure = plot_training({"first": first, "second": second})
    drawn = {x.get_title(loc="left"): x.lines for x in figure.axes if x.axison}
    assert {title: len(lines) for title, lines in drawn.items()} == {"Total loss": 2, "Class loss": 1, "Box AP": 1}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    # A run has the same color in the legend and in every panel.
    colors = [line.get_color() for line in figure.legends[0].get_lines()]
    assert [line.get_color() for line in drawn["Total loss"]] == colors
    assert drawn["Total loss"][1].get_xydata().tolist() == [[20, 4.0]]


def test_the_raw_values_are_behind_the_smoothed(make_run):
    run = make_run("run", *(loss(20 * i, float(i % 2)) for i in range(100)))
    raw, smoothed = plot_training({"run": run}, ["total_loss"]).axes[0].lines
    assert raw.get_alpha() < 0.5
    assert raw.get_ydata().tolist() == [0.0, 1.0] * 50
    assert np.ptp(smoothed.get_ydata()[5:-5]) < 0.3


def test_the_learning_rate_is_not_smoothed(make_run):
    run = make_run("run", *(loss(i, 1.0, lr=1e-4 if i < 50 else 1e-5) for i in range(100)))
    (line,) = plot_training({"run": run}, ["lr"], smoothing=9).axes[0].lines
    assert set(line.get_ydata()) == {1e-4, 1e-5}


def test_missing_runs_and_metrics_are_refused(make_run, tmp_path):
    run = make_run("run", loss(20, 3.0))
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        plot_training({"x": tmp_path / "nowhere"})
    with pytest.raises(UserError, match=r"No run has the metric 'bbox/APP'. There are: total_loss"):
        plot_training({"run": run}, ["bbox/APP"])
    with pytest.raises(UserError, match=r"not a metrics\.json"):
        plot_training({"other": make_run("other", '{"images": []}')})
    with pytest.raises(UserError, match="nothing to plot yet"):
        plot_training({"empty": make_run("empty")})


def test_curves_of_several_runs_differ_in_color_or_marker():
    figure = plot_curves({str(i): {0.5: 1.0, 1.0: None, 2.0: 3.0 + i} for i in range(12)}, "Box AP", "minutes")
    (panel,) = figure.axes
    assert len({line.get_color() for line in panel.lines}) == 12
    assert [line.get_marker() for line in panel.lines] == ["o"] * 6 + ["s"] * 6
    np.testing.assert_array_equal(panel.lines[1].get_xdata(), [0.5, 1.0, 2.0])
    np.testing.assert_array_equal(panel.lines[1].get_ydata(), [1.0, np.nan, 4.0])
    assert [x.get_text() for x in figure.legends[0].get_texts()] == [str(i) for i in range(12)]
    assert (panel.get_xlabel(), panel.get_title(loc="left")) == ("minutes", "Box AP")
