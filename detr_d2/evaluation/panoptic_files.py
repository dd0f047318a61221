"""Panoptic annotations and results in COCO's format: a json file, and pictures whose colours are segment ids.

An evaluation leaves ``predictions.json``, ``predictions/`` with a PNG an image, which panopticapi takes, and
``per_class.csv``.
"""

import csv
import io
import json
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr_d2.data.panoptic import PanopticCategories
from detr_d2.evaluation.panoptic_quality import SegmentCounts, class_quality
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

PICTURES = "predictions"
PREDICTIONS = "predictions.json"
PER_CLASS = "per_class.csv"


def read_annotations(path: str) -> dict[int, dict]:
    """The entries of a panoptic json's "annotations", by image id.

    Raises:
        UserError: the file cannot be read, or is no such json.
    """
    try:
        with open(path, "rb") as file:
            entries = json.load(file)["annotations"]
        return {x["image_id"]: {"file_name": x["file_name"], "segments_info": x["segments_info"]} for x in entries}
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}.") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is no json of panoptic annotations in COCO's format ({e!r}).") from e


def write_ids(path: str, ids: NDArray) -> None:
    """Write (H, W) segment ids under 2^24 as a picture; folders are made if need be."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic_file(path) as file:
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(file, format="PNG")


def write_predictions(folder: str, annotations_json: str, predictions: list[dict[str, Any]]) -> None:
    """Write ``predictions.json``, with the images and categories of the annotations, and drop older pictures.

    Args:
        predictions: dicts with "image_id", "file_name" and "segments_info".
    """
    with open(annotations_json, "rb") as file:
        content = json.load(file)
    os.makedirs(folder, exist_ok=True)
    kept = {x["file_name"] for x in predictions}
    for name in set(os.listdir(os.path.join(folder, PICTURES))) - kept:
        if name.endswith(".png"):
            os.remove(os.path.join(folder, PICTURES, name))
    with atomic_file(os.path.join(folder, PREDICTIONS)) as file:
        file.write(json.dumps({**content, "annotations": predictions}).encode())


def write_per_class(folder: str, categories: PanopticCategories, counts: list[SegmentCounts]) -> None:
    """Write ``per_class.csv``: PQ, SQ and RQ in percent, empty where a class does not occur, and the counts."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "kind", "PQ", "SQ", "RQ", "matched", "false positives", "missed"])
    for category, x in zip(categories, counts, strict=True):
        quality = class_quality(x)
        rates = [round(v, 2) if quality.classes else "" for v in (quality.pq, quality.sq, quality.rq)]
        kind = "thing" if category.is_thing else "stuff"
        writer.writerow([category.name, kind, *rates, x.true_positives, x.false_positives, x.false_negatives])
    with atomic_file(os.path.join(folder, PER_CLASS)) as file:
        file.write(text.getvalue().encode())
