"""COCO files of annotations and of results, and their comparison by COCOeval."""

import contextlib
import io
import math
import sys
from pathlib import Path
from typing import Any

from detectron2.evaluation.coco_evaluation import COCOeval_opt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_d2.data.registration import check_images, read_coco_content
from detr_d2.utils.errors import UserError, abbreviate
from detr_d2.utils.files import read_json

# The key of a result's shape, by task.
SHAPES = {"bbox": "bbox", "segm": "segmentation"}


def evaluate_results(annotations: COCO, results: list[dict[str, Any]], task: str = "bbox") -> COCOeval:
    """Match and accumulate, with Detectron2's compiled COCOeval if it is built. Without results AP is 0.

    ``task`` is "bbox" or "segm". The results are not modified.
    """
    # pycocotools would compute a mask's area from the box of a result with both.
    other = {"segm": "bbox", "bbox": "segmentation"}[task]
    results = [{k: v for k, v in x.items() if k != other} for x in results]
    with contextlib.redirect_stdout(io.StringIO()):
        # Neither loadRes nor the compiled COCOeval supports datasets without results.
        empty = {**annotations.dataset, "annotations": []}
        detections = annotations.loadRes(results) if results else _create_coco(empty)
        coco_eval = (COCOeval_opt if results else COCOeval)(annotations, detections, task)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return coco_eval


def load_annotations(path: Path) -> COCO:
    """Read a COCO file of annotations. If it is not one, or has no annotated objects, raise a UserError."""
    content = read_coco_content(str(path))
    check_images(content["images"], str(path))
    try:
        coco = _create_coco(content)
        unknown = [x["id"] for x in coco.anns.values() if x["category_id"] not in coco.cats]
        wrong = [x["id"] for x in coco.anns.values() if not _is_box(x["bbox"]) or x.get("iscrowd", 0) not in (0, 1)]
        if unknown or wrong:
            raise ValueError(f"annotation id {(unknown or wrong)[0]} has no category, box or 'iscrowd' of the format")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} can't be read as a COCO file of annotations ({type(error).__name__}: {error}): "
            "`detr-d2 check` says what is wrong with it."
        ) from error
    if not has_objects(coco):
        raise UserError(f"{path} has no annotated objects, so there is nothing to compare results with.")
    return coco


def load_results(path: Path, annotations: COCO, task: str = "bbox") -> list[dict[str, Any]]:
    """Read a COCO file of results. If it does not fit ``annotations`` and ``task``, raise a UserError."""
    results = read_json(path, "a COCO file of results")
    if not isinstance(results, list):
        raise UserError(f"{path} does not hold a list: it is not a COCO file of results.")
    needed = ("image_id", "category_id", "score", SHAPES[task])
    for i, result in enumerate(results):
        if not isinstance(result, dict):
            raise UserError(f"{path}: result {i} is not an object with keys, but {result!r:.40}.")
        missing = [key for key in needed if key not in result]
        if missing:
            raise UserError(f"{path}: result {i} has no {missing[0]!r}, which the task {task!r} needs.")
        kinds = (int | str, int, int | float, dict if task == "segm" else list)
        wrong = [key for key, kind in zip(needed, kinds, strict=True) if not isinstance(result[key], kind)]
        if not wrong and task == "bbox" and not _is_box(result["bbox"]):
            wrong = ["bbox"]
        if not wrong and not abs(result["score"]) < math.inf:
            wrong = ["score"]
        if wrong:
            raise UserError(f"{path}: result {i} has the {wrong[0]} {result[wrong[0]]!r:.40}: correct it.")
        if result["image_id"] not in annotations.imgs:
            raise UserError(f"{path}: result {i} is of image {result['image_id']}, which the annotations do not have.")
        if result["category_id"] not in annotations.cats:
            raise UserError(
                f"{path}: result {i} has the category {result['category_id']}, and the annotations have "
                f"{abbreviate(sorted(annotations.cats), 10)}: write the category ids of the annotations, not class "
                "numbers."
            )
    return results


def _is_box(box: Any) -> bool:
    # An integer may be too large for a float.
    is_number = (
        [isinstance(x, int | float) and abs(x) <= sys.float_info.max for x in box] if isinstance(box, list) else []
    )
    return len(is_number) == 4 and all(is_number)


def has_objects(coco: COCO) -> bool:
    """Check that an object other than a crowd is annotated; without one no AP is defined."""
    return any(not x.get("iscrowd", 0) for x in coco.anns.values())


def _create_coco(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
