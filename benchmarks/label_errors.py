r"""Plant label errors in a dataset, and count those that `detr-d2 doctor` finds among the first of their kind.

Of every kind as many errors are planted, in other annotations: some are removed, get another class, get a box with an
IoU of 0.4 to 0.65, and others are copied to where none are. The model must not have been trained on the images.

A dataset has errors of its own, which are ranked too. The second number leaves out findings that the doctor also
reports, as suspicious, without the planted errors.

Example:
  python -m benchmarks.label_errors --config-file output/mine/config.yaml --weights output/mine/model_final.pth \
      --annotations val.json --images val/
"""

import argparse
import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from pycocotools.coco import COCO
from tabulate import tabulate

from detr_d2.cli.arguments import CommandParser, add_annotated_flags, at_least
from detr_d2.cli.command import Command
from detr_d2.criterion.matching import MatchingCost
from detr_d2.engine.annotated import open_annotated, predict_annotated
from detr_d2.evaluation.label_errors import KINDS, rank_findings
from detr_d2.evaluation.label_fixes import Suggestion, find_in_image, to_suggestions
from detr_d2.utils.box_ops import iou

# Planted boxes have an IoU with the original in this range; copies have less with any annotation.
_LOOSE_IOU, _FREE_IOU = (0.4, 0.65), 0.1


def _add_flags(parser: CommandParser) -> None:
    add_annotated_flags(parser)
    parser.add_argument("--count", type=at_least(1, "errors"), default=50, metavar="N", help="errors of each kind")
    parser.add_argument("--top", type=at_least(1, "findings"), default=100, metavar="N", help="findings to look at")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds of the planting")


def run(args: argparse.Namespace) -> None:
    """Predict once, plant with every seed, and print the numbers found."""
    predictor, cfg, coco = open_annotated(args)
    cost, found = MatchingCost(cfg), dict(predict_annotated(predictor, coco, args.images, args.batch_size))
    known = {_key(x): x.suspicion for kind in diagnose(coco, found, cost).values() for x in kind}
    rows = []
    for seed in args.seeds:
        content, planted = plant(coco.dataset, args.count, np.random.default_rng(seed))
        changed = COCO()
        changed.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            changed.createIndex()
        ranked = diagnose(changed, found, cost)
        new = {kind: [x for x in ranked[kind] if x.suspicion > known.get(_key(x), 0.0) + 1e-9] for kind in KINDS}
        counts = [[count_found(x[kind][: args.top], planted[kind]) for kind in KINDS] for x in (ranked, new)]
        rows.append([seed, *(f"{a} / {b}" for a, b in zip(*counts, strict=True))])
    print(f"of {args.count} planted errors among the first {args.top}: found / found without errors of the dataset")
    print(tabulate(rows, ("seed", *KINDS)))


def diagnose(coco: COCO, found: dict[Any, Instances], cost: MatchingCost) -> dict[str, list[Suggestion]]:
    """Return all findings by kind, as the command ranks them."""
    ranked = rank_findings(x for key, instances in found.items() for x in find_in_image(coco, key, instances, cost))
    return {kind: to_suggestions(coco, findings) for kind, findings in ranked.items()}


def plant(
    content: dict[str, Any], count: int, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Return a copy of a COCO dataset with errors, and the annotations with an error, by kind."""
    content = copy.deepcopy(content)
    images = {x["id"]: x for x in content["images"]}
    categories = [x["id"] for x in content["categories"]]
    annotations = content["annotations"]
    chosen = rng.permutation([i for i, x in enumerate(annotations) if not x.get("iscrowd", 0)])
    missing, wrong, loose = ([annotations[i] for i in chosen[k * count : (k + 1) * count]] for k in range(3))
    for x in wrong:
        x["category_id"] = int(rng.choice([i for i in categories if i != x["category_id"]]))
    for x in loose:
        x["bbox"] = _loosen(x["bbox"], images[x["image_id"]], rng)
    by_image = defaultdict(list)
    for x in annotations:
        by_image[x["image_id"]].append(x["bbox"])
    surplus = []
    while len(surplus) < count:
        x, image = annotations[rng.integers(len(annotations))], content["images"][rng.integers(len(images))]
        size = np.array(x["bbox"][2:])
        room = [image["width"], image["height"]] - size
        if (room > 0).all():
            box = [*rng.uniform(0, room).tolist(), *size.tolist()]
            if _overlaps(box, by_image[image["id"]]).max(initial=0.0) < _FREE_IOU:
                by_image[image["id"]].append(box)
                number = max(y["id"] for y in annotations) + len(surplus) + 1
                surplus.append({**x, "id": number, "image_id": image["id"], "bbox": box})
    removed = {x["id"] for x in missing}
    content["annotations"] = [x for x in annotations if x["id"] not in removed] + surplus
    return content, {"missing": missing, "class": wrong, "box": loose, "surplus": surplus}


def count_found(suggestions: Iterable[Suggestion], planted: list[dict[str, Any]]) -> int:
    """Count the planted errors that are found: a missing object by a box with an IoU of at least 0.5."""
    ids, by_image = set(), defaultdict(list)
    for x in planted:
        by_image[x["image_id"]].append(x)
    for suggestion in suggestions:
        of_image = by_image[suggestion.image["id"]]
        if suggestion.annotation is not None:
            ids |= {x["id"] for x in of_image if x["id"] == suggestion.annotation["id"]}
        elif of_image:
            overlaps = _overlaps(suggestion.bbox, [x["bbox"] for x in of_image])
            ids |= {of_image[i]["id"] for i in np.flatnonzero(overlaps >= 0.5)}
    return len(ids)


def _key(x: Suggestion) -> tuple:
    return x.kind, x.image["id"], x.annotation["id"] if x.annotation else tuple(x.bbox)


def _loosen(box: list[float], image: dict[str, Any], rng: np.random.Generator) -> list[float]:
    """Move the edges of a box at random until it overlaps as little as a planted error."""
    left, top, width, height = box
    while True:
        moved = [left, top, left + width, top + height] + rng.uniform(-0.4, 0.4, 4) * ([width, height] * 2)
        moved = moved.clip(0, [image["width"], image["height"]] * 2)
        result = [*moved[:2], *(moved[2:] - moved[:2]).clip(min=0)]
        if _LOOSE_IOU[0] < _overlaps(box, [result])[0] < _LOOSE_IOU[1]:
            return [float(x) for x in result]


def _overlaps(box: list[float], others: list[list[float]]) -> NDArray:
    """Return the IoU of a box with each of the others, in COCO's format."""
    boxes = torch.tensor([box, *others], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    return iou(boxes[:1], boxes[1:]).numpy()


main = Command("label-errors", __doc__, _add_flags, run)

if __name__ == "__main__":
    raise SystemExit(main())
