"""Every kind of model in every format, compared with the model itself, which computes each image alone."""

import gc
import os
import signal

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.env import TORCH_VERSION
from torch.testing import assert_close

from detr_d2.data import DetrDatasetMapper
from detr_d2.export import ExportedModel, GraphOptions

from .conftest import KINDS

BATCHES = ([(96, 64)], [(33, 70), (81, 50)], [(64, 64), (90, 47), (31, 99), (64, 64), (57, 120)])

needs_new_torch = pytest.mark.skipif(TORCH_VERSION < (2, 6), reason="an early version of torch.export")
QUICK = [(kind, format) for kind in KINDS for format in ("openvino", "torchscript")]
SLOW = [
    *[("detr", "torch_export"), ("detr", "onnx"), ("dc5 smca masks", "onnx"), ("panoptic", "torch_export")],
    *[("multi-scale smca", "torch_export"), ("top-down smca", "onnx")],
]


@pytest.mark.parametrize(
    ("kind", "format"),
    [*QUICK, *(pytest.param(*x, marks=[needs_new_torch, pytest.mark.slow]) for x in SLOW)],
)
@torch.no_grad()
def test_results_are_those_of_the_model(export, make_inputs, kind, format):
    """Of batches of 1, 2 and 5 images with padding, at sizes that the export was not made or verified with."""
    model, _, path, verification = export(kind, format)
    exported = ExportedModel(path)
    assert verification.largest < 1e-5
    assert exported.info.serves_padding == (kind != "timm, images of one size")
    for sizes in BATCHES:
        inputs = [{"image": x["image"]} for x in make_inputs(sizes, [0] * len(sizes))]
        # As a prediction on a photograph that was resized.
        inputs[-1].update(height=40, width=150)
        for found, x in zip(exported(inputs), inputs, strict=True):
            assert_same_results(found, model([x])[0])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@torch.no_grad()
def test_results_on_photographs(export, real_coco, format):
    """Of all real images of COCO, as the loader of a test set gives them, in batches of five with padding."""
    if TORCH_VERSION < (2, 6) and format == "onnx":
        pytest.skip("an early version of torch.export")
    real_coco()
    model, cfg, path, _ = export("detr", format)
    exported, mapper = ExportedModel(path), DetrDatasetMapper(cfg, is_train=False)
    records = DatasetCatalog.get("coco_2017_val")
    assert len(records) == 50
    for first in range(0, 50, 5):
        inputs = [mapper(x) for x in records[first : first + 5]]
        for found, x in zip(exported(inputs), inputs, strict=True):
            assert_same_results(found, model([x])[0])


def test_signals_are_handled_after_models_of_openvino(export):
    """OpenVINO's own signal stack must not be unmapped: the next signal, such as a worker's end, would be a crash."""
    path = export("detr", "openvino").path
    models = [ExportedModel(path) for _ in range(2)]
    while models:
        del models[0]
        gc.collect()
    received = []
    earlier = signal.signal(signal.SIGUSR1, lambda *_: received.append(True))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, earlier)
    assert received


def assert_same_results(found: dict, expected: dict) -> None:
    """Compare detections after sorting, since equal scores have no order."""
    assert found.keys() == expected.keys()
    (a, b) = (x["instances"] for x in (found, expected))
    assert a.image_size == b.image_size
    assert len(a) == len(b)
    a, b = (x[(x.scores + x.pred_classes).argsort()] for x in (a, b))
    assert torch.equal(a.pred_classes, b.pred_classes)
    assert_close(a.scores, b.scores, atol=1e-5, rtol=0)
    assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-2, rtol=0)
    if b.has("pred_masks"):
        assert (a.pred_masks != b.pred_masks).float().mean() < 1e-3
        assert b.pred_masks.any()
    if "panoptic_seg" in expected:
        (ids, segments), (expected_ids, expected_segments) = found["panoptic_seg"], expected["panoptic_seg"]
        # Where the features of all queries are zero, their masks are equal.
        assert (ids != expected_ids).float().mean() < 0.02
        assert expected_segments
        assert [x["category_id"] for x in segments] == [x["category_id"] for x in expected_segments]


@pytest.mark.parametrize("kind", ["detr", "panoptic"])
@torch.no_grad()
def test_nms_is_that_of_the_model(export, make_inputs, monkeypatch, kind):
    """With detections, and with raw outputs and masks, as the config of the prediction says."""
    model, _, path, _ = export(kind, "torchscript")
    (image,) = make_inputs([(64, 80)], [0])
    (plain,) = ExportedModel(path)([image])
    (found,) = ExportedModel(path, nms_threshold=0.05)([image])
    assert len(found["instances"]) < len(plain["instances"])
    monkeypatch.setattr(model, "nms_threshold", 0.05)
    assert_same_results(found, model([image])[0])


@torch.no_grad()
def test_options(export, make_inputs):
    """The best detections of each image, and images in float32."""
    model, _, path, _ = export("smca", "torchscript", GraphOptions(max_detections=3, dtype="float32"))
    inputs = make_inputs([(64, 80), (50, 60)], [0, 0])
    for found, x in zip(ExportedModel(path)(inputs), inputs, strict=True):
        expected = model([x])[0]["instances"]
        best = expected.scores.argsort(descending=True)[:3]
        assert_close(found["instances"].scores, expected.scores[best], atol=1e-5, rtol=0)
        assert_close(found["instances"].pred_boxes.tensor, expected.pred_boxes.tensor[best], atol=1e-2, rtol=0)
