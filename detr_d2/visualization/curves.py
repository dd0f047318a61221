"""Plots of training, of one run or several, from the ``metrics.json`` that Detectron2 writes."""

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
from scipy.ndimage import uniform_filter1d

from detr_d2.utils.errors import UserError
from detr_d2.visualization.style import Color, palette_color, style_axes

logger = logging.getLogger(__name__)

# Title by key in metrics.json of the metrics that are plotted by default, if a run has them.
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
_COLUMNS = 4
_MARKERS, _COLORS_PER_MARKER = "os^", 6
# These are not measured on a random batch, and never smoothed.
_EXACT = ("lr", "bbox/", "segm/")


def plot_training(
    runs: Mapping[str, Path], metrics: Sequence[str] | None = None, smoothing: int | None = None
) -> Figure:
    """Plot one panel per metric and one line per run; the raw values are faint behind the smoothed ones.

    Args:
        runs: folder of each run, or its ``metrics.json``, by name in the legend.
        metrics: keys of ``metrics.json``; None: those of :data:`TITLES` that some run has.
        smoothing: number of neighboring values that are averaged; 1: none, None: a twentieth of all.

    Raises:
        UserError: a run has no ``metrics.json``, or no run has a metric.
    """
    all_series = [read_metrics(path) for path in runs.values()]
    known = {key for series in all_series for key in series}
    if missing := [key for key in metrics or () if key not in known]:
        raise UserError(f"No run has the metric {missing[0]!r}. There are: {', '.join(sorted(known))}.")
    keys = list(metrics or (key for key in TITLES if key in known))
    if not keys:
        raise UserError(f"There is nothing to plot yet in {', '.join(str(path) for path in runs.values())}.")
    columns, rows = min(_COLUMNS, len(keys)), math.ceil(len(keys) / _COLUMNS)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.5), layout="constrained", dpi=120)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for panel, key in zip(panels, keys, strict=False):
        window = 1 if key.startswith(_EXACT) else smoothing
        for i, series in enumerate(all_series):
            if key in series:
                _plot_series(panel, *series[key], palette_color(i), window)
        style_axes(panel, TITLES.get(key, key), "iteration")
        panel.tick_params(labelbottom=True)
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], color=palette_color(i), linewidth=2) for i in range(len(runs))]
    figure.legend(handles, list(runs), loc="outside upper left", ncols=min(len(runs), 4), fontsize=9, frameon=False)
    return figure


def plot_curves(curves: Mapping[str, Mapping[float, float | None]], title: str, x_label: str) -> Figure:
    """Plot one line per curve, which maps x, ascending, to y or, in a gap, None; beside it are their names."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained", dpi=120)
    panel = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        # Colors repeat, and pale ones are alike.
        marker = _MARKERS[i // _COLORS_PER_MARKER % len(_MARKERS)]
        values = np.array(list(points.values()), dtype=float)
        panel.plot(list(points), values, color=palette_color(i), marker=marker, label=name)
    style_axes(panel, title, x_label)
    panel.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure


def read_metrics(path: Path) -> dict[str, tuple[NDArray, NDArray]]:
    """Read the series of a run: by metric, (N,) int iterations, ascending, and (N,) float64 values, perhaps NaN.

    Where a run was resumed or started again in the same folder, repeated iterations replace the earlier ones and all
    that followed. Incomplete lines are left out, such as the last one of a run in progress. ``path`` is the run's
    folder, or its ``metrics.json``.

    Raises:
        UserError: there is no such file, or no line in it is one of Detectron2's.
    """
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist: give the OUTPUT_DIR of a run that has logged at least once.")
    parsed = [_parse(line) for line in file.read_text(errors="replace").splitlines() if line.strip()]
    records = [x for x in parsed if x]
    if parsed and not records:
        raise UserError(f"{file} has no line with an iteration: it is not a metrics.json of Detectron2.")
    # The last line may be incomplete.
    if dropped := parsed[:-1].count(None):
        logger.warning("%s: left out %d lines that are not complete.", file, dropped)
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        iteration = record.pop("iteration")
        for key, value in record.items():
            points = series[key]
            while points and points[-1][0] >= iteration:
                points.pop()
            points.append((iteration, float(value)))
    return {key: (np.array([i for i, _ in x]), np.array([v for _, v in x])) for key, x in series.items()}


def smooth(values: NDArray, window: int) -> NDArray:
    """Compute centered moving averages of (N,) ``values`` over at most ``window`` finite ones; NaN stays NaN."""
    finite = np.isfinite(values)
    # An even window holds one more value after the center than before it.
    options = {"size": window, "mode": "constant", "origin": window % 2 - 1}
    totals = uniform_filter1d(np.where(finite, values, 0.0), **options)
    shares = uniform_filter1d(finite.astype(float), **options)
    return np.where(finite, totals / np.maximum(shares, 0.5 / window), np.nan)


def _parse(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
        return None
    return record if all(isinstance(x, int | float) for x in record.values()) else None


def _plot_series(panel: Axes, iterations: NDArray, values: NDArray, color: Color, smoothing: int | None) -> None:
    # Odd, so that the smoothed line is not shifted.
    window = len(values) // 20 | 1 if smoothing is None else smoothing
    if window > 1:
        panel.plot(iterations, values, color=color, linewidth=0.8, alpha=0.3)
        values = smooth(values, window)
    # A short series has a marker at every point.
    marker = "o" if len(values) < 30 else None
    panel.plot(iterations, values, color=color, linewidth=1.6, marker=marker, markersize=3.5)
