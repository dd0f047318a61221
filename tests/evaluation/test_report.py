"""Tables and plots of an evaluation."""

import csv
import json

import numpy as np
import pytest

from detr_d2.evaluation import analyze, evaluate_results, report, write_evaluation
from detr_d2.evaluation.report import FILES, plot_confusion, plot_precision_recall


@pytest.fixture
def evaluation(random_case, to_coco):
    content, results = random_case(0)
    return analyze(evaluate_results(to_coco(content), results))


@pytest.fixture
def nothing_found(make_coco, to_coco):
    return analyze(evaluate_results(to_coco(make_coco({1: "cat"}, 1, [(1, 1, (0, 0, 5, 5))])), []))


def test_tables_hold_the_numbers(evaluation, tmp_path):
    write_evaluation(evaluation, str(tmp_path / "new" / "folder"))
    folder = tmp_path / "new" / "folder"
    assert sorted(x.name for x in folder.iterdir()) == sorted(FILES)
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [x["class"] for x in rows] == ["all", "cat", "dog", "cow", "never seen"]
    cat = evaluation.classes[0]
    assert float(rows[1]["AP50"]) == pytest.approx(cat.ap50, abs=0.005)
    assert float(rows[1]["threshold"]) == pytest.approx(cat.best.threshold, abs=5e-5)
    assert int(rows[1]["objects"]) == cat.objects
    assert (rows[4]["AP"], rows[4]["F1"], rows[4]["objects"]) == ("", "", "0")
    matrix = list(csv.reader((folder / "confusion_matrix.csv").open()))
    assert matrix[0] == ["ground truth / predicted", "cat", "dog", "cow", "never seen", "(missed)"]
    assert [row[0] for row in matrix[1:]] == ["cat", "dog", "cow", "never seen", "(no object)"]
    assert np.array_equal(np.array(matrix)[1:, 1:].astype(int), evaluation.confusion)
    # Strictly JSON: without NaN.
    content = json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert content["classes"][0]["best"]["f1"] == cat.best.f1
    assert content["classes"][3]["ap"] is None
    assert content["overall"]["ap"] == evaluation.overall.ap
    assert np.shape(content["precision_by_recall"]["precision"]) == (4, 101)


def test_an_interrupted_evaluation_leaves_nothing_old(evaluation, nothing_found, tmp_path, monkeypatch):
    """The second evaluation of a folder is interrupted: nothing of the first is left in it."""
    write_evaluation(evaluation, str(tmp_path))
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    monkeypatch.setattr(report, "plot_confusion", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_evaluation(nothing_found, str(tmp_path))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["confusion_matrix.csv", "notes.txt", "per_class.csv"]
    assert "dog" not in (tmp_path / "per_class.csv").read_text()


def test_plots_of_nothing_found(nothing_found, tmp_path):
    write_evaluation(nothing_found, str(tmp_path))
    assert json.loads((tmp_path / "evaluation.json").read_text())["overall"]["best"]["threshold"] is None


def test_curves(evaluation):
    left, right = plot_precision_recall(evaluation).axes
    labels = [line.get_label() for line in left.lines]
    assert labels[-1] == f"mean of 3  {evaluation.overall.ap50:.1f}"
    assert not any("never seen" in label for label in labels)
    # The area under the mean curve, COCO's average over 101 recalls, is AP50.
    assert left.lines[-1].get_ydata().mean() == pytest.approx(evaluation.overall.ap50)
    f1 = right.lines[2]
    best = evaluation.overall.best
    assert f1.get_ydata().max() == pytest.approx(best.f1)
    assert f1.get_xdata()[f1.get_ydata().argmax()] >= best.threshold


def test_confusion_plot(evaluation):
    panel = plot_confusion(evaluation).axes[0]
    assert [x.get_text() for x in panel.get_yticklabels()] == ["cat", "dog", "cow", "never seen", "(no object)"]
    shares = panel.images[0].get_array()
    assert shares.sum(axis=1).compressed() == pytest.approx([100] * 4)
    assert shares.mask[3].all()
