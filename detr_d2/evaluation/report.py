"""Files of an evaluation: tables, plots and a summary."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from detr_d2.evaluation.analysis import Evaluation
from detr_d2.utils.files import atomic_file, write_json
from detr_d2.visualization.style import GRAY, palette_color, style_axes

# In the order of writing: if the last exists, the others are of the same evaluation.
FILES = ("per_class.csv", "confusion_matrix.csv", "confusion_matrix.png", "precision_recall.png", "evaluation.json")

# With more classes, only the best and the worst half of this number get a color.
_MAX_CURVES = 6
# Larger matrices show colors without numbers.
_MAX_NUMBERS = 25
# More points of a curve would be slow to plot and not visible.
_MAX_POINTS = 1000


def write_evaluation(evaluation: Evaluation, folder: str) -> None:
    """Write :data:`FILES` to ``folder``, which is created if needed, after removing those of an earlier evaluation."""
    os.makedirs(folder, exist_ok=True)
    remove_evaluation(folder)
    table, matrix, matrix_plot, curves_plot, content = (os.path.join(folder, name) for name in FILES)
    write_csv(table, summary_table(evaluation))
    names = [x.name for x in evaluation.classes]
    rows = zip([*names, "(no object)"], evaluation.confusion.tolist(), strict=True)
    header = ["ground truth / predicted", *names, "(missed)"]
    write_csv(matrix, [header, *([name, *counts] for name, counts in rows)])
    for path, plot in ((matrix_plot, plot_confusion), (curves_plot, plot_precision_recall)):
        with atomic_file(path) as file:
            plot(evaluation).savefig(file, format="png", bbox_inches="tight")
    # JSON has no NaN: null.
    values = json.loads(json.dumps(summary(evaluation)), parse_constant=lambda _: None)
    write_json(content, values, indent=1)


def remove_evaluation(folder: str) -> None:
    """Remove the files of :func:`write_evaluation` from ``folder``."""
    for name in reversed(FILES):
        if os.path.exists(path := os.path.join(folder, name)):
            os.remove(path)


def write_csv(path: str, rows: Iterable[list[Any]]) -> None:
    """Write a header and rows of cells."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of ``evaluation.json``; rates in percent, NaN where undefined."""
    return {
        "task": evaluation.task,
        "overall": asdict(evaluation.overall),
        "classes": [asdict(x) for x in evaluation.classes],
        "confusion": {
            "threshold": evaluation.confusion_threshold,
            "rows": "ground truth: the classes, then no object",
            "columns": "predicted: the classes, then missed",
            "matrix": evaluation.confusion.tolist(),
        },
        "precision_by_recall": {
            "recall": evaluation.recall.round(2).tolist(),
            "precision": [row.round(2).tolist() for row in evaluation.precision],
        },
    }


def summary_table(evaluation: Evaluation) -> list[list[Any]]:
    """Return a header, then one row for all classes and one per class; rates in percent, "" where undefined."""
    rows = [["class", "images", "objects", "AP", "AP50", "AR", "threshold", "precision", "recall", "F1", "detections"]]
    for x in (evaluation.overall, *evaluation.classes):
        averages = map(round_rate, (x.ap, x.ap50, x.ar))
        rates = map(round_rate, (x.best.precision, x.best.recall, x.best.f1))
        threshold = round_rate(x.best.threshold, digits=4)
        rows.append([x.name, x.images, x.objects, *averages, threshold, *rates, x.best.detections])
    return rows


def round_rate(rate: float, digits: int = 2) -> float | str:
    """Round a rate for a table; "" where it is undefined, NaN."""
    return "" if math.isnan(rate) else round(rate, digits)


def plot_precision_recall(evaluation: Evaluation) -> Figure:
    """Plot precision by recall at IoU 0.5 of each class, and precision, recall and F1 of all by the score threshold.

    Up to six classes have a color each; with more, the three with the best and the three with the worst AP50.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    _plot_classes(left, evaluation)
    _plot_thresholds(right, evaluation)
    for axes in (left, right):
        axes.set_ylim(0, 102)
    return figure


def plot_confusion(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix: colors are shares of a row, numbers are counts."""
    names = [x.name for x in evaluation.classes]
    matrix = evaluation.confusion
    size = np.clip(0.42 * len(names) + 3.2, 4.8, 18)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained", dpi=120)
    axes = figure.subplots()
    title = f"Confusions at score ≥ {evaluation.confusion_threshold:.2f}, IoU ≥ 0.5"
    style_axes(axes, title, "predicted", "ground truth")
    axes.grid(False)
    rows = matrix.sum(axis=1, keepdims=True)
    shares = np.where(rows > 0, 100 * matrix / np.maximum(rows, 1), np.nan)
    # The scale makes rare confusions visible.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    has_numbers = len(matrix) <= _MAX_NUMBERS
    for (row, column), count in np.ndenumerate(matrix):
        if has_numbers and count:
            color = "white" if shares[row, column] > 30 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    font = 9 if has_numbers else 7
    ticks = np.arange(len(matrix))
    axes.set_xticks(ticks, [*names, "(missed)"], rotation=90 if len(names) > 5 else 0, fontsize=font)
    axes.set_yticks(ticks, [*names, "(no object)"], fontsize=font)
    for draw_line in (axes.axhline, axes.axvline):
        draw_line(len(names) - 0.5, color="0.6", linewidth=0.8)
    bar = figure.colorbar(image, ax=axes, fraction=0.035, pad=0.02, label="% of row", ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.outline.set_visible(False)
    return figure


def _plot_classes(axes: Axes, evaluation: Evaluation) -> None:
    classes, recall = evaluation.classes, evaluation.recall
    ranked = sorted((k for k, x in enumerate(classes) if x.objects), key=lambda k: -classes[k].ap50)
    half = _MAX_CURVES // 2
    named = ranked if len(ranked) <= _MAX_CURVES else [*ranked[:half], *ranked[-half:]]
    for k in set(ranked) - set(named):
        axes.plot(recall, evaluation.precision[k], color="0.8", linewidth=0.7)
    for i, k in enumerate(named):
        label = f"{classes[k].name}  {classes[k].ap50:.1f}"
        axes.plot(recall, evaluation.precision[k], color=palette_color(i), linewidth=1.4, label=label)
    if len(ranked) > 1:
        mean = evaluation.precision[ranked].mean(axis=0)
        label = f"mean of {len(ranked)}  {evaluation.overall.ap50:.1f}"
        axes.plot(recall, mean, color="black", linewidth=2.4, label=label)
    style_axes(axes, "Precision by recall, IoU ≥ 0.5", "recall (%)", "precision (%)")
    axes.set_xlim(0, 100)
    title = "class, AP50" if len(named) == len(ranked) else "best, worst and mean AP50"
    axes.legend(title=title, fontsize=8, title_fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _plot_thresholds(axes: Axes, evaluation: Evaluation) -> None:
    step = len(evaluation.scores) // _MAX_POINTS + 1
    scores, precision, recall = (
        x[::step] for x in (evaluation.scores, evaluation.score_precision, evaluation.score_recall)
    )
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    axes.plot(scores, precision, color=palette_color(0), linewidth=1.4, label="precision")
    axes.plot(scores, recall, color=palette_color(1), linewidth=1.4, label="recall")
    axes.plot(scores, f1, color="black", linewidth=2.4, label="F1")
    best = evaluation.overall.best
    if np.isfinite(best.threshold):
        axes.axvline(best.threshold, color="0.6", linewidth=1, linestyle="--")
        side = "left" if best.threshold < 0.75 else "right"
        text = f" best F1 {best.f1:.1f}\n at {best.threshold:.2f}"
        axes.annotate(text, (best.threshold, 99), va="top", ha=side, fontsize=8, color=GRAY)
    style_axes(axes, "All classes, by score threshold", "score threshold", "%")
    axes.set_xlim(0, 1)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
