"""The script for onnxruntime alone, against the package's predictor."""

import importlib.util
import re

import pytest

from .conftest import Detection, assert_same_detections


@pytest.mark.slow
def test_detections_are_those_of_the_predictor(make_example, repository, capsys):
    model = make_example("onnx")
    spec = importlib.util.spec_from_file_location("example", repository / "examples" / "onnxruntime_detect.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for image in model.images:
        example.main(str(model.path), [str(image)], threshold=0.0)
        found = read_lines(capsys.readouterr().out, str(image))
        assert len(found) == 7
        assert_same_detections(found, model.detect(image))


def read_lines(text: str, image: str) -> list[Detection]:
    """Return the detections in an image that an example has printed."""
    rows = re.findall(rf"^{re.escape(image)}: (\w+) ([\d.]+) \[(.+)\]$", text, re.MULTILINE)
    return [Detection(name, float(score), tuple(map(float, box.split(", ")))) for name, score, box in rows]
