"""Preview of some annotated images, to check boxes and names at a glance."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import BoxMode
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from detr_d2.data.bands import to_display
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


def draw_preview(
    records: Sequence[dict],
    classes: Sequence[str] | None,
    mapper: Callable[[dict], dict] | None = None,
    image_format: str = "RGB",
    channels: int = 3,
) -> Figure:
    """Draw some images with their boxes and the names of their classes.

    Without a ``mapper``: upright, as training reads them, with boxes as annotated. With the mapper of the training: as
    the model will see them, augmented and resized, with the boxes and masks that it will learn from;
    ``image_format`` is the mapper's. ``channels`` is the number of bands of the files.

    The same records give the same choice of images. For an image that can't be read, the error is shown.
    """
    table = AnnotationTable(records)
    chosen = choose_images(table, ROWS * COLUMNS)
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure((COLUMNS * CELL_INCHES, rows * CELL_INCHES), dpi=100, layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes in cells:
        axes.set_axis_off()
    for axes, index in zip(cells, chosen, strict=False):
        name = os.path.basename(records[index]["file_name"])
        try:
            if mapper is None:
                drawn, count = _draw_as_annotated(records[index], table, index, classes, channels)
            else:
                drawn, count = _draw_as_mapped(mapper(records[index]), image_format, classes)
            axes.set_title(f"{name}: {count} objects", fontsize=9)
            axes.imshow(drawn)
        except UserError as error:
            axes.set_title(name, fontsize=9)
            axes.text(0.5, 0.5, str(error), ha="center", va="center", wrap=True, fontsize=8, transform=axes.transAxes)
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


def _draw_as_annotated(
    record: dict, table: AnnotationTable, index: int, classes: Sequence[str] | None, channels: int
) -> tuple[np.ndarray, int]:
    """Return the image with its boxes, (H, W, 3) RGB, and the number of boxes."""
    rows = np.flatnonzero((table.image_index == index) & table.is_readable())
    pixels = to_display(read_image(record["file_name"], "RGB", channels=channels))
    image = ImageOps.contain(Image.fromarray(pixels), (SIDE, SIDE))
    scale = image.width / pixels.shape[1]
    annotations = [
        {"bbox": (scale * table.boxes[row]).tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": table.classes[row]}
        for row in rows
    ]
    return draw_instances(np.asarray(image), annotations, classes), len(rows)


def _draw_as_mapped(sample: dict, image_format: str, classes: Sequence[str] | None) -> tuple[np.ndarray, int]:
    """Return an image of the mapper with its targets, (H, W, 3) RGB, and the number of targets."""
    image, targets = sample["image"].permute(1, 2, 0), sample["instances"]
    image = convert_image_to_rgb(image, image_format) if image.shape[2] == 3 else to_display(image.numpy())
    scale = SIDE / max(image.shape[:2])
    return draw_instances(image, targets, classes, scale=scale), len(targets)
