"""One small exported model, and what the package detects with it."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from detectron2.utils.env import TORCH_VERSION
from PIL import Image

from detr_d2.data.augmentation import build_augmentation
from detr_d2.export import ExportedModel
from detr_d2.export.info import INFO
from detr_d2.inference.predictor import Categories, Predictor
from tests.export.conftest import NAMES, export

__all__ = ["export"]


class Detection(NamedTuple):
    """A detected object; the box is (left, top, right, bottom) in pixels."""

    name: str
    score: float
    box: tuple[float, ...]


class Example(NamedTuple):
    """An exported model, images, and how the package detects objects in an image."""

    path: Path
    images: list[Path]
    detect: Callable[[Path], list[Detection]]


@pytest.fixture(scope="session")
def make_example(export, tmp_path_factory):
    """Return a function that exports the small model in a format; noisy images of two shapes come with it.

    The channels are in the order BGR in ONNX, and RGB in OpenVINO.
    """
    folder = tmp_path_factory.mktemp("images")

    def make(format: str) -> Example:
        if format == "onnx" and TORCH_VERSION < (2, 6):
            pytest.skip("an early version of torch.export")
        _, cfg, path, _ = export("detr", format)
        if format == "onnx":
            path = _as_bgr(path, folder / "bgr.onnx")
        model = ExportedModel(path)
        categories = Categories(NAMES, [1] * len(NAMES))
        predictor = Predictor(model, build_augmentation(cfg, is_train=False), model.info.image_format, categories)
        images = [folder / "wide.png", folder / "high.png"]
        for i, (size, image) in enumerate(zip([(50, 83), (97, 41)], images, strict=True)):
            # Reddish: results depend on the order of the channels.
            pixels = np.random.default_rng(i).integers(256, size=(*size, 3)) * [1.0, 0.4, 0.1]
            Image.fromarray(pixels.astype(np.uint8)).save(image)

        def detect(image: Path) -> list[Detection]:
            (found,) = predictor([np.asarray(Image.open(image))])
            rows = zip(found.pred_classes, found.scores, found.pred_boxes.tensor, strict=True)
            return [Detection(NAMES[c], score.item(), tuple(box.tolist())) for c, score, box in rows]

        return Example(path, images, detect)

    return make


def _as_bgr(path: Path, copy: Path) -> Path:
    onnx = importlib.import_module("onnx")
    model = onnx.load(path)
    texts = {x.key: x.value for x in model.metadata_props}
    info = json.loads(texts[INFO]) | {"image_format": "BGR"}
    onnx.helper.set_model_props(model, texts | {INFO: json.dumps(info)})
    onnx.save(model, copy)
    return copy


def assert_same_detections(found: list[Detection], expected: list[Detection]) -> None:
    """Compare detections in their order, up to the digits that are printed; a box 0.1 off has an IoU of 0.99."""
    assert [x.name for x in found] == [x.name for x in expected]
    assert [x.score for x in found] == pytest.approx([x.score for x in expected], abs=0.001)
    for a, b in zip(found, expected, strict=True):
        assert a.box == pytest.approx(b.box, abs=0.1)
