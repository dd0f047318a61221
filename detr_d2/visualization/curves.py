"""Training curves, of one run or several, from the ``metrics.json`` that Detectron2 writes."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.json"
# What is drawn unless asked otherwise, if a run has it: the key in metrics.json and the panel's title.
TITLES = {
    "total_loss": "Total loss",
    "loss_ce": "Class loss",
    "loss_bbox": "L1 loss",
    "loss_giou": "GIoU loss",
    "class_error": "Class error (%)",
    "bbox/AP": "Box AP",
    "bbox/AP50": "Box AP50",
    "lr": "Learning rate",
}
# Distinguishable with every kind of colour vision, in an order that keeps neighbours apart (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#B5A900")
_COLUMNS = 4
# Never smoothed: what is not measured on a random batch.
_EXACT = ("lr", "bbox/", "segm/")
# Shorter series are drawn with their points.
_DENSE = 30

Series = tuple[NDArray, NDArray]


def plot_training(
    runs: Mapping[str, Path], metrics: Sequence[str] | None = None, smoothing: int | None = None
) -> Figure:
    """A panel for every metric, a line for every run; the raw values faint behind the smoothed ones.

    Args:
        runs: name in the legend -> the run's folder, or its ``metrics.json``.
        metrics: keys of ``metrics.json``. None: those of :data:`TITLES` that some run has.
        smoothing: how many neighbouring values of the file are averaged; 1 for none, None for a twentieth of them.

    Raises:
        UserError: a run has no ``metrics.json``, or no run has a metric.
    """
    found = {name: read_metrics(path) for name, path in runs.items()}
    known = {key for series in found.values() for key in series}
    for key in metrics or ():
        if key not in known:
            raise UserError(f"No run has the metric {key!r}. There are: {', '.join(sorted(known))}.")
    keys = list(metrics or (key for key in TITLES if key in known))
    if not keys:
        raise UserError(f"There is nothing to draw yet in {', '.join(str(path) for path in runs.values())}.")
    columns = min(_COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.5), layout="constrained", dpi=120)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for panel, key in zip(panels, keys, strict=False):
        for i, series in enumerate(found.values()):
            if key in series:
                window = 1 if key.startswith(_EXACT) else smoothing
                _draw(panel, *series[key], COLOURS[i % len(COLOURS)], window)
        _style(panel, TITLES.get(key, key))
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    _legend(figure, list(runs))
    return figure


def read_metrics(path: Path) -> dict[str, Series]:
    """The series of a run: metric -> iterations (N,) int, rising, and values (N,) float64, NaN where training had one.

    Where a run was resumed or started anew in the same folder, what was done again replaces what it had done before.
    Lines that are not complete, as the last one of a run that is writing, are left out.

    Args:
        path: the run's folder, or its ``metrics.json``.

    Raises:
        UserError: there is no such file, or no line in it is one of Detectron2's.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist: give the OUTPUT_DIR of a run that has logged at least once.")
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    records = [record for line in lines if (record := _parse(line)) is not None]
    if lines and not records:
        raise UserError(f"{file} has no line with an iteration: it is not a metrics.json of Detectron2.")
    # The last line may be in writing.
    if dropped := len(lines) - len(records) - (_parse(lines[-1]) is None if lines else 0):
        logger.warning("%s: left out %d lines that are not complete.", file, dropped)
    for record in records:
        iteration = record.pop("iteration")
        for key, value in record.items():
            points = series[key]
            while points and points[-1][0] >= iteration:
                points.pop()
            points.append((iteration, float(value)))
    return {key: (np.array([i for i, _ in x]), np.array([v for _, v in x])) for key, x in series.items()}


def smooth(values: NDArray, window: int) -> NDArray:
    """Centred moving averages of (N,) ``values`` over at most ``window`` of them; NaN where the value is NaN."""
    known = np.isfinite(values)
    indices = np.arange(len(values))
    start = np.maximum(indices - (window - 1) // 2, 0)
    end = np.minimum(indices + window // 2 + 1, len(values))
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    means = (totals[end] - totals[start]) / np.maximum(counts[end] - counts[start], 1)
    return np.where(known, means, np.nan)


def _parse(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("iteration"), int) else None


def _draw(panel: Axes, iterations: NDArray, values: NDArray, colour: str, smoothing: int | None) -> None:
    # Odd, so that the smoothed line is not shifted.
    window = len(values) // 20 | 1 if smoothing is None else smoothing
    if window > 1:
        panel.plot(iterations, values, color=colour, linewidth=0.8, alpha=0.3)
        values = smooth(values, window)
    marker = "o" if len(values) < _DENSE else None
    panel.plot(iterations, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5)


def _style(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    panel.set_xlabel("iteration", fontsize=8, color="0.35")
    panel.tick_params(labelsize=8, color="0.7", labelcolor="0.35", labelbottom=True)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    panel.grid(color="0.92", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("0.8")
    panel.set_axisbelow(True)


def _legend(figure: Figure, names: list[str]) -> None:
    if len(names) == 1:
        figure.suptitle(names[0], fontsize=10, color="0.35", x=0.01, ha="left")
        return
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2) for i in range(len(names))]
    figure.legend(handles, names, loc="outside upper left", ncols=min(len(names), 4), fontsize=9, frameon=False)
