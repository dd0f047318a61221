"""Files of predictions with masks and panoptic segments, from a predictor with known results."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask

from detr_d2.data.inputs import InputFile, find_inputs
from detr_d2.engine.prediction import predict_files
from detr_d2.inference.predictor import Categories

HEIGHT, WIDTH = 40, 50
BOXES = [[2.0, 3.0, 22.0, 13.0], [10.0, 20.0, 40.0, 38.0]]


@pytest.fixture
def predictor():
    """Return a predictor of two things with masks, the second with the higher score, and of a segment of each kind."""
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 3:13, 2:22], masks[1, 20:38, 10:40] = True, True
    instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.tensor(BOXES)), pred_masks=masks)
    instances.scores, instances.pred_classes = torch.tensor([0.7, 0.9]), torch.tensor([1, 0])
    ids = torch.full((HEIGHT, WIDTH), 300, dtype=torch.int32)
    ids[masks[1]] = 70000
    segments = [
        {"id": 70000, "isthing": True, "category_id": 0, "area": 540, "score": 0.9000001},
        {"id": 300, "isthing": False, "category_id": 2, "area": 1460, "score": 0.5},
    ]
    result = {"instances": instances, "panoptic_seg": (ids, segments)}
    return SimpleNamespace(
        categories=Categories(["cat", "dog", "sky"], [3, 7, 187]),
        channels=3,
        model=SimpleNamespace(panoptic=SimpleNamespace(is_thing=[True, True, False])),
        predict=lambda images, batch_size: ((file, image, result) for file, image in images),
    )


def test_an_image_from_standard_input(predictor, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "PNG")
    out = tmp_path / "out"
    shown = []
    predict_files(
        predictor,
        [InputFile("-", "stdin.png", content=buffer.getvalue())],
        out,
        show=lambda image: shown.append(image) or True,
    )
    (image,) = json.loads((out / "images.json").read_text())["images"]
    assert (image["file_name"], image["height"], image["width"]) == ("-", HEIGHT, WIDTH)
    assert np.array_equal(np.asarray(Image.open(out / "overlays" / "stdin.png")), shown[0])


def test_masks_and_segments(predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "out"
    summary = predict_files(predictor, find_inputs([str(tmp_path / "a.png")]), out, score_thresh=0.6)
    assert summary.detections_by_class == {"cat": 1, "dog": 1}
    results = json.loads((out / "predictions.json").read_text())
    assert [(x["image_id"], x["category_id"], x["score"]) for x in results] == [(1, 3, 0.9), (1, 7, 0.7)]
    assert [x["bbox"] for x in results] == [[10, 20, 30, 18], [2, 3, 20, 10]]
    assert [mask.toBbox(x["segmentation"]).tolist() for x in results] == [[10, 20, 30, 18], [2, 3, 20, 10]]

    images = json.loads((out / "images.json").read_text())
    panoptic = json.loads((out / "panoptic.json").read_text())
    assert panoptic["images"] == images["images"]
    assert [(x["id"], x["name"], x["isthing"]) for x in panoptic["categories"]] == [
        (3, "cat", 1),
        (7, "dog", 1),
        (187, "sky", 0),
    ]
    (annotation,) = panoptic["annotations"]
    assert annotation["image_id"] == 1
    assert annotation["segments_info"] == [
        {"id": 70000, "category_id": 3, "area": 540, "score": 0.9},
        {"id": 300, "category_id": 187, "area": 1460, "score": 0.5},
    ]
    rgb = np.asarray(Image.open(out / "panoptic" / annotation["file_name"])).astype(int)
    ids = rgb @ [1, 256, 65536]
    assert (ids[30, 20], ids[0, 0]) == (70000, 300)
    overlay = np.asarray(Image.open(out / "overlays" / "a.png"))
    assert overlay.shape == pixels.shape
    assert not np.array_equal(overlay, pixels)
