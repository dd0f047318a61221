"""Real images, from the file to the detections, against the original's transforms, model and PostProcess."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
from detr.datasets.transforms import Compose, Normalize, RandomResize, ToTensor
from detr.models.detr import PostProcess
from PIL import Image
from torch.testing import assert_close

from detr_d2.data import DetrDatasetMapper
from detr_d2.engine import Trainer

# As datasets/coco.py of the original for "val", with a smaller size.
SIZE, MAX_SIZE = 320, 500
OPTIONS = ("INPUT.MIN_SIZE_TEST", SIZE, "INPUT.MAX_SIZE_TEST", MAX_SIZE)


@pytest.fixture
def records(real_data):
    """Return landscape, portrait and panorama: the validation images with the most different shapes."""
    images = json.loads((real_data / "coco" / "annotations" / "instances_val2017.json").read_text())["images"]
    images.sort(key=lambda x: x["width"] / x["height"])
    chosen = [images[i] for i in (0, 10, 25, -1)]
    folder = real_data / "coco" / "val2017"
    return [{**{k: x[k] for k in ("height", "width")}, "file_name": str(folder / x["file_name"])} for x in chosen]


@pytest.fixture
def pair(make_cfg, make_original):
    cfg = make_cfg(*OPTIONS)
    original = make_original(cfg)
    model = build_model(cfg)
    model.load_state_dict(original.state_dict())
    return cfg, model.eval(), original


def expected_detections(original, record):
    normalize = Compose([ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    image, _ = RandomResize([SIZE], max_size=MAX_SIZE)(Image.open(record["file_name"]).convert("RGB"))
    image, _ = normalize(image, None)
    with torch.no_grad():
        return PostProcess()(original([image]), torch.tensor([[record["height"], record["width"]]]))[0]


def assert_same_detections(instances, expected):
    height, width = instances.image_size
    size = torch.tensor([width, height, width, height])
    assert_close(instances.pred_boxes.tensor / size, expected["boxes"] / size, atol=1e-4, rtol=0)
    assert_close(instances.scores, expected["scores"], atol=1e-4, rtol=0)
    assert instances.pred_classes.tolist() == expected["labels"].tolist()


def test_detections_of_the_test_loader(pair, records):
    cfg, model, original = pair
    loader = build_detection_test_loader(records, mapper=DetrDatasetMapper(cfg, is_train=False))
    with torch.no_grad():
        for record, batch in zip(records, loader, strict=True):
            assert_same_detections(model(batch)[0]["instances"], expected_detections(original, record))


def test_default_predictor_with_an_original_checkpoint(pair, records, tmp_path):
    """Detectron2's own predictor and checkpointer load the original's file, and return its detections."""
    cfg, _, original = pair
    torch.save({"model": original.state_dict()}, tmp_path / "original.pth")
    # A size at which Detectron2's rounding and the original's agree, so that the inputs are equal.
    cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "original.pth"), "INPUT.MIN_SIZE_TEST", 0])
    predictor = DefaultPredictor(cfg)
    image = Image.open(records[1]["file_name"]).convert("RGB")
    instances = predictor(np.asarray(image)[:, :, ::-1])["instances"]
    tensor = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(ToTensor()(image, None)[0])[0]
    with torch.no_grad():
        expected = PostProcess()(original([tensor]), torch.tensor([list(image.size[::-1])]))[0]
    assert_same_detections(instances, expected)
    visualized = Visualizer(np.asarray(image)).draw_instance_predictions(instances)
    assert not np.array_equal(visualized.get_image(), np.asarray(image))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_several_images(make_cfg, make_model, catalog, records, workers):
    """The same detections in batches of padded images, and images of similar shapes together."""
    catalog("photos", [{**x, "image_id": i} for i, x in enumerate(records[::-1])], thing_classes=list("abcde"))
    model = make_model(*OPTIONS)

    def evaluate(batch_size):
        cfg = make_cfg(*OPTIONS, "TEST.BATCH_SIZE", batch_size, "DATALOADER.NUM_WORKERS", workers)
        shapes, found = [], {}
        for batch in Trainer.build_test_loader(cfg, "photos"):
            assert len(batch) <= batch_size
            shapes += [x["height"] / x["width"] for x in batch]
            with torch.no_grad():
                results = model(batch)
            found.update((x["image_id"], y["instances"]) for x, y in zip(batch, results, strict=True))
        return shapes, found

    shapes, expected = evaluate(1)
    assert shapes == [x["height"] / x["width"] for x in records[::-1]]
    shapes, found = evaluate(3)
    assert shapes == sorted(shapes)
    assert len(shapes) == len(records)
    for image, instances in expected.items():
        assert_close(found[image].scores, instances.scores, atol=1e-4, rtol=0)
        assert_close(found[image].pred_boxes.tensor, instances.pred_boxes.tensor, atol=0.05, rtol=1e-4)
