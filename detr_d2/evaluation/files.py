"""The files that an evaluation leaves."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from detr_d2.evaluation.analysis import ClassResult, Evaluation
from detr_d2.evaluation.plots import plot_confusion, plot_precision_recall
from detr_d2.utils.files import atomic_file

PER_CLASS = "per_class.csv"
CONFUSION = "confusion_matrix.csv"
CONFUSION_PICTURE = "confusion_matrix.png"
CURVES_PICTURE = "precision_recall.png"
# Written last: where it is, the others are of the same evaluation.
SUMMARY = "evaluation.json"
FILES = (PER_CLASS, CONFUSION, CONFUSION_PICTURE, CURVES_PICTURE, SUMMARY)


def write_evaluation(evaluation: Evaluation, folder: str) -> None:
    """Write :data:`FILES` to ``folder``, which is made if need be. Those of an earlier evaluation are gone first."""
    os.makedirs(folder, exist_ok=True)
    remove_evaluation(folder)
    names = [x.name for x in evaluation.classes]
    _write_csv(os.path.join(folder, PER_CLASS), summary_table(evaluation))
    matrix = zip([*names, "(no object)"], evaluation.confusion.tolist(), strict=True)
    header = ["what is there / detected as", *names, "(missed)"]
    _write_csv(os.path.join(folder, CONFUSION), [header, *([name, *counts] for name, counts in matrix)])
    _write_picture(os.path.join(folder, CONFUSION_PICTURE), plot_confusion(evaluation))
    _write_picture(os.path.join(folder, CURVES_PICTURE), plot_precision_recall(evaluation))
    with atomic_file(os.path.join(folder, SUMMARY)) as file:
        file.write(json.dumps(_plain(summary(evaluation)), indent=1, ensure_ascii=False).encode())


def remove_evaluation(folder: str) -> None:
    """Remove what :func:`write_evaluation` wrote to ``folder``, if anything."""
    for name in reversed(FILES):
        if os.path.exists(path := os.path.join(folder, name)):
            os.remove(path)


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """What ``evaluation.json`` holds; rates in percent, NaN where one is not defined."""
    return {
        "task": evaluation.task,
        "overall": asdict(evaluation.overall),
        "classes": [asdict(x) for x in evaluation.classes],
        "confusion": {
            "threshold": evaluation.confusion_threshold,
            "rows": "what is there: the classes, then no object",
            "columns": "what is detected: the classes, then nothing",
            "matrix": evaluation.confusion.tolist(),
        },
        "precision_by_recall": {
            "recall": evaluation.recall.round(2).tolist(),
            "precision": [row.round(2).tolist() for row in evaluation.precision],
        },
    }


def summary_table(evaluation: Evaluation) -> list[list[Any]]:
    """A header and a row for all classes and for each; rates in percent, rounded, "" where one is not defined."""
    header = ["class", "images", "objects", "AP", "AP50", "AR", "threshold", "precision", "recall", "F1", "detections"]
    return [header, *map(_row, [evaluation.overall, *evaluation.classes])]


def _row(x: ClassResult) -> list[Any]:
    best = x.best
    rates = [_rounded(value, 2) for value in (best.precision, best.recall, best.f1)]
    average = [_rounded(value, 2) for value in (x.ap, x.ap50, x.ar)]
    return [x.name, x.images, x.objects, *average, _rounded(best.threshold, 4), *rates, best.detections]


def _rounded(value: float, digits: int) -> float | str:
    return "" if math.isnan(value) else round(value, digits)


def _plain(value: Any) -> Any:
    """With null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_csv(path: str, rows: Iterable[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _write_picture(path: str, figure: Figure) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")
