"""Annotations and results for the tests of evaluation."""

import numpy as np
import pytest
from pycocotools.coco import COCO


@pytest.fixture
def make_coco():
    """Return a function that makes the content of an annotation file.

    ``objects`` are (image, category, box) or (image, category, box, True) for a crowd; boxes are (x, y, width, height).
    """

    def make(categories: dict[int, str], num_images: int, objects: list[tuple]) -> dict:
        annotations = [
            {
                "id": i + 1,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(any(crowd)),
            }
            for i, (image, category, box, *crowd) in enumerate(objects)
        ]
        return {
            "images": [{"id": i + 1, "height": 100, "width": 100, "file_name": f"{i}.jpg"} for i in range(num_images)],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in categories.items()],
        }

    return make


@pytest.fixture
def make_results():
    """Return a function that makes COCO results of (image, category, box, score)."""

    def make(*detections: tuple) -> list[dict]:
        keys = ("image_id", "category_id", "bbox", "score")
        return [{**dict(zip(keys, x, strict=True)), "bbox": list(x[2])} for x in detections]

    return make


@pytest.fixture
def random_case(make_coco, make_results):
    """Return a function that makes annotations, with crowds and equal scores, and results that are often close."""

    def make(seed: int, num_images: int = 12, max_detections: int = 130) -> tuple[dict, list[dict]]:
        rng = np.random.default_rng(seed)
        categories = {2: "cat", 5: "dog", 9: "cow", 11: "never seen"}
        objects, detections = [], []
        for image in range(1, num_images + 1):
            boxes = [np.concatenate([rng.uniform(0, 60, 2), rng.uniform(10, 40, 2)]) for _ in range(rng.integers(9))]
            labels = rng.choice([2, 5, 9], len(boxes)).tolist()
            for box, label in zip(boxes, labels, strict=True):
                objects.append((image, label, box.tolist(), rng.random() < 0.2))
            for _ in range(rng.integers(max_detections)):
                i = rng.integers(len(boxes)) if boxes else None
                box = np.array([1, 1, 9, 9]) if i is None else boxes[i] + rng.normal(0, 3, 4)
                label = 9 if i is None or rng.random() < 0.3 else labels[i]
                detections.append((image, label, np.maximum(box, 1).tolist(), round(float(rng.random()), 2)))
        return make_coco(categories, num_images, objects), make_results(*detections)

    return make


@pytest.fixture
def to_coco():
    """Return a function that makes pycocotools' object of a file's content."""

    def make(content: dict) -> COCO:
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        return coco

    return make
