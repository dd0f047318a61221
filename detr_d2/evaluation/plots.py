"""Pictures of an evaluation."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from detr_d2.evaluation.analysis import Evaluation

# Distinguishable with every kind of colour vision, in an order that keeps neighbours apart (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_GREY = "0.35"
# With more classes a matrix shows colours only.
_MOST_NUMBERS = 25


def plot_precision_recall(evaluation: Evaluation) -> Figure:
    """Precision by recall at IoU 0.5 for each class, and precision, recall and F1 of all by the score threshold.

    Up to six classes have a colour each; of more, the three with the best and the worst AP50 have one.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    _draw_precision_recall(left, evaluation)
    _draw_thresholds(right, evaluation)
    return figure


def plot_confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix: colours are shares of a row, numbers are counts."""
    names = [x.name for x in evaluation.classes]
    matrix = evaluation.confusion
    size = np.clip(0.42 * len(names) + 3.2, 4.8, 18)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained", dpi=120)
    panel = figure.subplots()
    rows = matrix.sum(axis=1, keepdims=True)
    shares = np.where(rows > 0, 100 * matrix / np.maximum(rows, 1), np.nan)
    # Rare confusions are what one looks for.
    image = panel.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    if len(matrix) <= _MOST_NUMBERS:
        _write_counts(panel, matrix, shares)
    font = 9 if len(matrix) <= _MOST_NUMBERS else 7
    ticks = np.arange(len(matrix))
    panel.set_xticks(ticks, [*names, "(missed)"], rotation=90 if len(names) > 5 else 0, fontsize=font)
    panel.set_yticks(ticks, [*names, "(no object)"], fontsize=font)
    panel.axhline(len(names) - 0.5, color="0.6", linewidth=0.8)
    panel.axvline(len(names) - 0.5, color="0.6", linewidth=0.8)
    panel.set_xlabel("detected as", color=_GREY)
    panel.set_ylabel("what is there", color=_GREY)
    panel.set_title(f"Confusions at score ≥ {evaluation.confusion_threshold:.2f}, IoU ≥ 0.5", loc="left", fontsize=11)
    panel.tick_params(color="0.7")
    panel.spines[:].set_color("0.8")
    bar = figure.colorbar(image, ax=panel, fraction=0.035, pad=0.02, label="% of row", ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.outline.set_visible(False)
    return figure


def _draw_precision_recall(panel: Axes, evaluation: Evaluation) -> None:
    ranked = sorted(
        (k for k, x in enumerate(evaluation.classes) if x.objects), key=lambda k: -evaluation.classes[k].ap50
    )
    named = ranked if len(ranked) <= len(_COLOURS) else [*ranked[:3], *ranked[-3:]]
    for k in set(ranked) - set(named):
        panel.plot(evaluation.recall, evaluation.precision[k], color="0.8", linewidth=0.7)
    for colour, k in zip(_COLOURS, named, strict=False):
        label = f"{evaluation.classes[k].name}  {evaluation.classes[k].ap50:.1f}"
        panel.plot(evaluation.recall, evaluation.precision[k], color=colour, linewidth=1.4, label=label)
    if len(ranked) > 1:
        mean = evaluation.precision[ranked].mean(axis=0)
        label = f"mean of {len(ranked)}  {evaluation.overall.ap50:.1f}"
        panel.plot(evaluation.recall, mean, color="black", linewidth=2.4, label=label)
    _style(panel, "Precision by recall, IoU ≥ 0.5", "recall (%)", "precision (%)")
    panel.set_xlim(0, 100)
    title = "class, AP50" if len(named) == len(ranked) else "best, worst and mean AP50"
    panel.legend(title=title, fontsize=8, title_fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_thresholds(panel: Axes, evaluation: Evaluation) -> None:
    scores, precision, recall = evaluation.scores, evaluation.score_precision, evaluation.score_recall
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    for values, name, colour, width in (
        (precision, "precision", _COLOURS[0], 1.4),
        (recall, "recall", _COLOURS[1], 1.4),
        (f1, "F1", "black", 2.4),
    ):
        panel.plot(*_thin(scores, values), color=colour, linewidth=width, label=name)
    best = evaluation.overall.best
    if np.isfinite(best.threshold):
        panel.axvline(best.threshold, color="0.6", linewidth=1, linestyle="--")
        panel.annotate(
            f" best F1 {best.f1:.1f}\n at {best.threshold:.2f}",
            (best.threshold, 99),
            va="top",
            ha="left" if best.threshold < 0.75 else "right",
            fontsize=8,
            color=_GREY,
        )
    _style(panel, "All classes, by score threshold", "score threshold", "%")
    panel.set_xlim(0, 1)
    panel.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _thin(x: NDArray, y: NDArray, limit: int = 1000) -> tuple[NDArray, NDArray]:
    """About ``limit`` of the points: more are not seen, and slow to draw."""
    step = len(x) // limit + 1
    return x[::step], y[::step]


def _write_counts(panel: Axes, matrix: NDArray, shares: NDArray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 30 else "black"
            panel.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)


def _style(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=11, loc="left")
    panel.set_xlabel(x, fontsize=9, color=_GREY)
    panel.set_ylabel(y, fontsize=9, color=_GREY)
    panel.set_ylim(0, 102)
    panel.tick_params(labelsize=8, color="0.7", labelcolor=_GREY)
    panel.grid(color="0.92", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("0.8")
    panel.set_axisbelow(True)
