"""Table of the annotation formats, and recognition of the one that a file or folder has."""

from collections.abc import Callable
from typing import NamedTuple

from detr_d2.data.formats import coco, cvat, label_studio, labelme, via, voc, yolo
from detr_d2.data.formats.records import AnnotatedDataset, Source
from detr_d2.utils.errors import UserError, did_you_mean


class Format(NamedTuple):
    """Annotation format: its name for messages, how it is recognized, and its reader."""

    title: str
    looks_for: str
    detect: Callable[[Source], str | None]  # Returns what was found.
    read: Callable[[Source], AnnotatedDataset]


FORMATS = {
    "coco": Format("COCO", ".json with 'images' and 'categories', also in annotations/", coco.detect, coco.read),
    "voc": Format("Pascal VOC", ".xml files with <annotation>, also in Annotations/", voc.detect, voc.read),
    "yolo": Format("YOLO", "data.yaml, or .txt files of numbers, also in labels/", yolo.detect, yolo.read),
    "cvat": Format("CVAT for images", "annotations.xml with <annotations>", cvat.detect, cvat.read),
    "label-studio": Format(
        "Label Studio",
        ".json with a list of tasks with 'data' and 'annotations'",
        label_studio.detect,
        label_studio.read,
    ),
    "labelme": Format("LabelMe", ".json files with 'shapes' and 'imagePath'", labelme.detect, labelme.read),
    "via": Format("VGG Image Annotator", ".json with 'filename' and 'regions'", via.detect, via.read),
}


def recognize(source: Source) -> tuple[str, str]:
    """Return the name of the format of a file or folder, and what was found that shows it.

    Raises:
        UserError: the path does not exist, or has none of the formats or several.
    """
    path = source.path
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file or folder of annotations.")
    if path.suffix.lower() in (".zip", ".tar", ".gz", ".7z", ".rar"):
        raise UserError(f"{path} is an archive: unpack it, and give the folder.")
    found = {name: what for name, x in FORMATS.items() if (what := x.detect(source))}
    if not found:
        looked = "".join(f"\n  {name:13} {x.title}: {x.looks_for}" for name, x in FORMATS.items())
        raise UserError(f"{path} has annotations of none of the known formats. Looked for:{looked}")
    if len(found) > 1:
        what = "".join(f"\n  {name:13} {what}" for name, what in found.items())
        raise UserError(
            f"{path} has annotations of several formats: give the file or folder of one, or to `detr-d2 import` its "
            f"name, --format:{what}"
        )
    return next(iter(found.items()))


def read_dataset(source: Source, name: str | None = None) -> tuple[str, AnnotatedDataset]:
    """Read a dataset in the named format, or the one that is recognized; return a line about it, and the dataset.

    Raises:
        UserError: there is no such format, it is not recognized, or the files are malformed.
    """
    if name is not None and name not in FORMATS:
        raise UserError(f"There is no format {name}. {did_you_mean(name, FORMATS, 'Known: ' + ', '.join(FORMATS))}")
    what = "as requested" if name else None
    if name is None:
        name, what = recognize(source)
    elif not source.path.exists():
        raise UserError(f"{source.path} does not exist: give a file or folder of annotations.")
    return f"{source.path} is of the format {name} ({FORMATS[name].title}): {what}.", FORMATS[name].read(source)
