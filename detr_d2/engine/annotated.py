"""Prediction on the annotated images of a COCO file."""

import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Instances
from pycocotools.coco import COCO

from detr_d2.data.images import read_image
from detr_d2.evaluation import load_annotations
from detr_d2.export import build_predictor
from detr_d2.inference.predictor import Categories, Predictor
from detr_d2.utils.errors import UserError
from detr_d2.utils.progress import progress_bar


def open_annotated(args: Namespace) -> tuple[Predictor, CfgNode, COCO]:
    """Return the model with its config, and the annotations, of :func:`~detr_d2.cli.arguments.add_annotated_flags`.

    The model returns detections of any score.

    Raises:
        UserError: a file or the folder of images is missing or wrong.
    """
    coco = load_annotations(Path(args.annotations))
    if not os.path.isdir(args.images):
        raise UserError(f"--images {args.images} is not a folder: give that of the images in {args.annotations}.")
    for image in coco.imgs.values():
        if not isinstance(image.get("file_name"), str):
            raise UserError(f"Image id {image['id']} in {args.annotations} has no 'file_name': add it.")
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    every_score = ["MODEL.DETR.TEST.SCORE_THRESHOLD", "0.0", "MODEL.DETR.TEST.CLASS_THRESHOLDS", "()"]
    predictor, cfg = build_predictor(args.config_file, [*args.opts, *weights, *every_score], trust=args.trust)
    # An exported file has its own.
    predictor.model.class_thresholds = ()
    cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS = ()
    return predictor, cfg, coco


def predict_annotated(
    predictor: Predictor, coco: COCO, image_root: str, batch_size: int = 1
) -> Iterator[tuple[Any, Instances]]:
    """Predict on every image, showing progress on a terminal.

    Yields:
        the id of an image, and its detections on the CPU, boxes in pixels. Their classes are indices in the sorted
        category ids of ``coco``.

    Raises:
        UserError: an image can't be read, or the classes of the model are not those of ``coco``.
    """
    rows = match_classes(predictor.categories, coco)
    images = coco.loadImgs(coco.getImgIds())
    with progress_bar(description="predicting", total=len(images), unit="image") as bar:
        files = ((x["id"], os.path.join(image_root, x["file_name"])) for x in images)
        inputs = ((key, read_image(file, "RGB", channels=predictor.channels)) for key, file in files)
        for key, _, result in predictor.predict(inputs, batch_size):
            instances = result["instances"]
            instances.pred_classes = instances.pred_classes.new_tensor(rows)[instances.pred_classes]
            bar.update()
            yield key, instances


def match_classes(categories: Categories, coco: COCO) -> list[int]:
    """Return the index in the sorted category ids of ``coco`` of each class of a model, which have the same names.

    The names may be in another order. Where the model has no names, the order is that of the ids.
    """
    names = [coco.cats[i]["name"] for i in sorted(coco.cats)]
    if categories.names == [f"class {i}" for i in range(len(names))]:
        return list(range(len(names)))
    if sorted(categories.names) != sorted(names) or len(set(names)) < len(names):
        missing = [x for x in names if x not in categories.names]
        raise UserError(
            f"The model has the classes {', '.join(categories.names)}, and the annotations {', '.join(names)}"
            f"{f': {missing[0]} is not among those of the model' if missing else ''}. Give annotations of the same "
            "classes."
        )
    return [names.index(x) for x in categories.names]


def to_results(key: Any, instances: Instances, category_ids: list[int]) -> list[dict[str, Any]]:
    """Return the detections of an image as COCO results of boxes."""
    boxes = instances.pred_boxes.tensor.double()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
    return [{"image_id": key, "category_id": category_ids[k], "bbox": box, "score": s} for box, k, s in rows]
