"""Label errors of a COCO dataset, and the dataset with the suggested fixes."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances
from pycocotools.coco import COCO

from detr_d2.criterion.matching import MatchingCost
from detr_d2.evaluation.label_errors import Annotations, Candidates, Finding, find_label_errors


@dataclass(frozen=True)
class Suggestion:
    """A finding in the terms of its dataset."""

    number: int  # Counted from 1.
    kind: str
    suspicion: float
    image: dict[str, Any]  # Entry of the file's images.
    annotation: dict[str, Any] | None  # Entry of its annotations; None for a missing object.
    category_id: int | None  # Suggested category; None for a surplus annotation.
    predicted: list[float] | None  # Predicted box: x, y, width, height; None for a surplus annotation.

    @property
    def bbox(self) -> list[float] | None:
        """Suggested box; None where the annotated one is kept."""
        return self.predicted if self.kind in ("missing", "box") else None

    def to_json(self) -> dict[str, Any]:
        """Return the finding with ids in the place of the entries."""
        return {
            "number": self.number,
            "kind": self.kind,
            "suspicion": round(self.suspicion, 4),
            "image_id": self.image["id"],
            "annotation_id": self.annotation and self.annotation["id"],
            "category_id": self.category_id,
            "bbox": self.bbox,
        }


def find_in_image(coco: COCO, image_id: Any, instances: Instances, cost: MatchingCost) -> list[Finding]:
    """Compare an image's annotations with its detections; the findings name the image by its id.

    The classes of ``instances`` are indices in the sorted category ids.
    """
    rows = {category: k for k, category in enumerate(sorted(coco.cats))}
    annotations = coco.imgToAnns.get(image_id, [])
    boxes = np.array([x["bbox"] for x in annotations], float).reshape(-1, 4)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(min=0)
    candidates = Candidates.from_detections(
        instances.pred_boxes.tensor.double().numpy(),
        instances.pred_classes.numpy(),
        instances.scores.numpy(),
        len(rows),
    )
    annotated = Annotations(
        boxes,
        np.array([rows[x["category_id"]] for x in annotations], int),
        np.array([x.get("iscrowd", 0) for x in annotations], bool),
    )
    return find_label_errors(image_id, annotated, candidates, instances.image_size, cost)


def to_suggestions(coco: COCO, findings: Sequence[Finding]) -> list[Suggestion]:
    """Return the findings with numbers, and with the entries that they are about."""
    categories = sorted(coco.cats)
    suggestions = []
    for number, x in enumerate(findings, start=1):
        image = coco.imgs[x.image]
        suggestions.append(
            Suggestion(
                number=number,
                kind=x.kind,
                suspicion=x.suspicion,
                image=image,
                annotation=None if x.annotation is None else coco.imgToAnns[x.image][x.annotation],
                category_id=None if x.suggested_class is None else categories[x.suggested_class],
                predicted=None if x.predicted_box is None else _to_coco_box(x.predicted_box, image),
            )
        )
    return suggestions


def apply_suggestions(content: dict[str, Any], suggestions: Sequence[Suggestion]) -> dict[str, Any]:
    """Return a copy of a COCO dataset with all suggestions applied.

    - An annotation that is changed or added has the number of the finding as "finding", and a changed one what it was
      as "original".
    - A changed box loses its "segmentation", which no longer fits.
    - Surplus annotations are moved to the list "removed".
    - "findings" lists all suggestions.
    """
    fixed = copy.deepcopy(content)
    by_id = {x["id"]: x for x in fixed["annotations"]}
    next_id = max((i for i in by_id if isinstance(i, int)), default=0) + 1
    removed = {x.annotation["id"]: x.number for x in suggestions if x.kind == "surplus"}
    for x in suggestions:
        if x.kind == "surplus":
            continue
        if x.annotation is None:
            annotation = {"id": next_id, "image_id": x.image["id"], "iscrowd": 0}
            fixed["annotations"].append(annotation)
            next_id += 1
        else:
            annotation = by_id[x.annotation["id"]]
            annotation["original"] = copy.deepcopy(x.annotation)
        annotation.update(category_id=x.category_id, finding=x.number)
        if x.bbox is not None:
            annotation.update(bbox=x.bbox, area=round(x.bbox[2] * x.bbox[3], 2))
            annotation.pop("segmentation", None)
    fixed["removed"] = [{**by_id[i], "finding": number} for i, number in removed.items()]
    fixed["annotations"] = [x for x in fixed["annotations"] if x["id"] not in removed]
    fixed["findings"] = [x.to_json() for x in suggestions]
    return fixed


def _to_coco_box(box: Sequence[float], image: dict[str, Any]) -> list[float]:
    """Return x, y, width and height of an XYXY box, inside the image if its size is known."""
    size = [image.get("width"), image.get("height")]
    known = all(isinstance(x, int | float) and x > 0 for x in size)
    box = np.clip(box, 0, size * 2 if known else np.inf)
    left, top, right, bottom = box.round(2).tolist()
    return [left, top, round(right - left, 2), round(bottom - top, 2)]
