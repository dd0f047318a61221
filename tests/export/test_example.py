"""The script for onnxruntime alone, against the package's predictor."""

import importlib.util
import re

import numpy as np
import pytest
from detectron2.utils.env import TORCH_VERSION
from PIL import Image

from detr_d2.data.augmentation import build_augmentation
from detr_d2.inference.predictor import Categories, Predictor

from .conftest import NAMES


@pytest.mark.slow
@pytest.mark.skipif(TORCH_VERSION < (2, 6), reason="an early version of torch.export")
def test_detections_are_those_of_the_predictor(export, repository, tmp_path, capsys):
    model, cfg, path, _ = export("detr", "onnx")
    spec = importlib.util.spec_from_file_location("example", repository / "examples" / "onnxruntime_detect.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    predictor = Predictor(model, build_augmentation(cfg, is_train=False), cfg.INPUT.FORMAT, Categories(NAMES, [1] * 5))
    for i, size in enumerate([(50, 83), (97, 41)]):
        pixels = np.random.default_rng(i).integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        example.main(str(path), [str(tmp_path / "image.png")], threshold=0.0)
        (expected,) = predictor([pixels])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(expected) == 7
        rows = zip(expected.pred_classes, expected.scores, expected.pred_boxes.tensor, strict=True)
        for line, (label, score, box) in zip(lines, rows, strict=True):
            _, name, numbers = re.fullmatch(r"(.+): (\w+) (.+)", line).groups()
            assert name == NAMES[label]
            found = [float(x) for x in re.findall(r"-?[\d.]+", numbers)]
            assert found == pytest.approx([score.item(), *box.tolist()], abs=0.06)
