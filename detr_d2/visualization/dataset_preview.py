"""A picture of some annotated images, to see at a glance whether boxes and names fit."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from detr_d2.data.checks.annotation_checks import AnnotationTable
from detr_d2.data.images import read_image
from detr_d2.utils.errors import UserError

# Longest side that an image is drawn with: a cell of the picture has no more pixels.
MAX_SIDE = 640
CELL_INCHES = 4.5
# Images with more objects are hard to read as long as there are others.
READABLE_OBJECTS = 15
CANDIDATES = 10_000
# About that of a label, as a share of its image.
LABEL_HEIGHT = 0.04
# Of red, green and blue, ITU-R BT.601.
LUMINANCE = (0.299, 0.587, 0.114)


def draw_preview(records: Sequence[dict], classes: Sequence[str] | None, rows: int = 3, columns: int = 3) -> Figure:
    """Images upright, as training reads them, with boxes as annotated and the names of their classes.

    The same records give the same picture. An image that can't be read is a cell that says so.

    Args:
        records: in Detectron2's format.
        classes: names by label; None shows labels.
        rows, columns: at most so many images.
    """
    table = AnnotationTable(records)
    chosen = choose_images(table, rows * columns)
    rows = min(rows, -(-len(chosen) // columns))
    figure = Figure((columns * CELL_INCHES, rows * CELL_INCHES), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, index in zip(figure.subplots(rows, columns, squeeze=False).flat, chosen, strict=False):
        _draw(axes, records[index], table, index, classes)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def choose_images(table: AnnotationTable, count: int) -> list[int]:
    """Indices of images that show as many classes as possible, those with a readable number of objects first.

    One image after the other, the one with the most classes not shown yet; once none adds a class, classes count
    anew. Only the first 10,000 images are considered, and those without objects come last.
    """
    usable = table.usable() & (table.image_index < CANDIDATES)
    num_images = min(table.num_images, CANDIDATES)
    objects = np.bincount(table.image_index[usable], minlength=num_images)
    labels = [set() for _ in range(num_images)]
    for index, label in zip(table.image_index[usable].tolist(), table.classes[usable].tolist(), strict=True):
        labels[index].add(label)
    order = sorted(range(num_images), key=lambda i: (objects[i] == 0, objects[i] > READABLE_OBJECTS))
    chosen: list[int] = []
    shown: set[int] = set()
    while order and len(chosen) < count:
        best = max(order, key=lambda i: (0 < objects[i] <= READABLE_OBJECTS, len(labels[i] - shown)))
        if shown and not labels[best] - shown:
            shown = set()
            best = max(order, key=lambda i: (0 < objects[i] <= READABLE_OBJECTS, len(labels[i])))
        chosen.append(best)
        shown |= labels[best]
        order.remove(best)
    return sorted(chosen)


def _draw(axes: Axes, record: dict, table: AnnotationTable, index: int, classes: Sequence[str] | None) -> None:
    rows = np.flatnonzero((table.image_index == index) & table.is_readable())
    axes.set_title(f"{os.path.basename(record['file_name'])}: {len(rows)} objects", fontsize=9)
    try:
        pixels = read_image(record["file_name"], "RGB")
    except UserError as error:
        axes.text(0.5, 0.5, str(error), ha="center", va="center", wrap=True, fontsize=8, transform=axes.transAxes)
        return
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    # Axes stay in the pixels of the file, so that boxes are drawn as annotated.
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    colors = colormaps["tab20"].colors
    for row in rows:
        label = int(table.classes[row])
        name = classes[label] if classes is not None and 0 <= label < len(classes) else str(label)
        left, top, right, bottom = table.boxes[row].tolist()
        color = colors[label % len(colors)]
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, linewidth=1.5))
        axes.text(
            left,
            max(top, 0),
            name,
            fontsize=7,
            color="black" if np.dot(color, LUMINANCE) > 0.6 else "white",
            # Above the box, unless that is outside the image.
            va="bottom" if top > LABEL_HEIGHT * height else "top",
            clip_on=True,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            parse_math=False,
        )
