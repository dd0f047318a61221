"""Preview of some annotated images, to check boxes and names at a glance."""

import os
from collections.abc import Sequence

import numpy as np
from detectron2.structures import BoxMode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from detr_d2.data.checks.annotation_table import AnnotationTable
from detr_d2.data.images import read_image
from detr_d2.utils.errors import UserError
from detr_d2.visualization.detections import draw_instances

ROWS, COLUMNS, CELL_INCHES = 3, 3, 4.5
# Pixels of an image in its cell, where the Visualizer's labels have a readable size.
SIDE = 640
# Images with more objects are hard to read, and shown only where there are no others.
READABLE_OBJECTS = 15
CANDIDATES = 10_000


def draw_preview(records: Sequence[dict], classes: Sequence[str] | None) -> Figure:
    """Draw images upright, as training reads them, with boxes as annotated and the names of their classes.

    The same records give the same plot. For an image that can't be read, the error is shown.
    """
    table = AnnotationTable(records)
    chosen = choose_images(table, ROWS * COLUMNS)
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure((COLUMNS * CELL_INCHES, rows * CELL_INCHES), dpi=100, layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes in cells:
        axes.set_axis_off()
    for axes, index in zip(cells, chosen, strict=False):
        _draw_image(axes, records[index], table, index, classes)
    return figure


def choose_images(table: AnnotationTable, count: int) -> list[int]:
    """Return indices of images that show as many classes as possible, those with a readable number of objects first.

    Greedy: the next image is the one with the most classes not shown yet; once none adds a class, all count as not
    shown again. Only the first 10,000 images are considered, and those without objects come last.
    """
    usable = table.usable() & (table.image_index < CANDIDATES)
    num_images = min(table.num_images, CANDIDATES)
    objects = np.bincount(table.image_index[usable], minlength=num_images)
    labels = [set() for _ in range(num_images)]
    for index, label in zip(table.image_index[usable].tolist(), table.classes[usable].tolist(), strict=True):
        labels[index].add(label)
    order = sorted(range(num_images), key=lambda i: (objects[i] == 0, objects[i] > READABLE_OBJECTS))
    chosen, shown = [], set()

    def gain(i: int) -> tuple[bool, int]:
        return 0 < objects[i] <= READABLE_OBJECTS, len(labels[i] - shown)

    while order and len(chosen) < count:
        best = max(order, key=gain)
        if shown and not labels[best] - shown:
            shown.clear()
            best = max(order, key=gain)
        chosen.append(best)
        shown |= labels[best]
        order.remove(best)
    return sorted(chosen)


def _draw_image(axes: Axes, record: dict, table: AnnotationTable, index: int, classes: Sequence[str] | None) -> None:
    rows = np.flatnonzero((table.image_index == index) & table.is_readable())
    axes.set_title(f"{os.path.basename(record['file_name'])}: {len(rows)} objects", fontsize=9)
    try:
        pixels = read_image(record["file_name"], "RGB")
    except UserError as error:
        axes.text(0.5, 0.5, str(error), ha="center", va="center", wrap=True, fontsize=8, transform=axes.transAxes)
        return
    image = ImageOps.contain(Image.fromarray(pixels), (SIDE, SIDE))
    scale = image.width / pixels.shape[1]
    annotations = [
        {"bbox": (scale * table.boxes[row]).tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": table.classes[row]}
        for row in rows
    ]
    axes.imshow(draw_instances(np.asarray(image), annotations, classes))
