"""Files that are not written, and files that are not usable."""

import sys

import pytest
import torch

from detr_d2 import UserError
from detr_d2.export import ExportedModel, ExportGraph, GraphOptions, export_model, verify_golden

from .conftest import NAMES


@pytest.fixture
def try_export(export, tmp_path):
    """Return a function that exports again, to a file in an empty folder."""
    model, cfg, *_ = export("detr", "torchscript")

    def run(name: str = "model.ts", **settings):
        return export_model(model, tmp_path / name, cfg=cfg, class_names=NAMES, **settings)

    return run


def test_a_file_that_does_not_agree_is_not_written(try_export, tmp_path, monkeypatch):
    forward = ExportGraph.forward

    def wrong(self, images, sizes):
        boxes, scores, labels = forward(self, images, sizes)
        # Only where something is padded.
        return boxes, scores + 0.01 * (sizes[:, :1] < images.shape[2]), labels

    monkeypatch.setattr(ExportGraph, "forward", wrong)
    with pytest.raises(UserError, match=r"does not agree with the model: \w+ of 2 images of .*, padded differ"):
        try_export()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("model.engine", {}, r"its name must end with one of \.onnx"),
        ("model.ts", {"format": "openvino"}, r"let its name end with \.xml"),
        ("model.ts", {"format": "tensorrt"}, "choose one of onnx, openvino"),
        ("nowhere/model.ts", {}, "does not exist: make it"),
        ("model.ts", {"options": GraphOptions(masks=True)}, "the model has no mask head"),
        ("model.ts", {"options": GraphOptions(max_detections=8)}, "set 1 to 7"),
        ("model.ts", {"options": GraphOptions("all")}, "choose one of detections, raw"),
    ],
)
def test_mistakes(try_export, tmp_path, name, settings, message):
    with pytest.raises(UserError, match=message):
        try_export(name, **settings)
    assert not list(tmp_path.iterdir())


def test_existing_files_stay(try_export, tmp_path):
    (tmp_path / "model.ts").write_text("mine")
    with pytest.raises(UserError, match="exists already: name another file, or add --force"):
        try_export()
    assert (tmp_path / "model.ts").read_text() == "mine"


def test_missing_runtime(try_export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"need the package openvino.*pip install 'detr_d2\[openvino\]'"):
        try_export("model.xml")
    (tmp_path / "model.xml").write_text("")
    with pytest.raises(UserError, match=r"pip install 'detr_d2\[openvino\]'"):
        ExportedModel(tmp_path / "model.xml")


def test_golden_outputs(export, monkeypatch):
    """Verified without the model, in every precision of the format alone."""
    path = export("smca", "torchscript").path
    assert verify_golden(path).largest < 1e-6
    run = ExportedModel.run

    def wrong(self, images, sizes):
        outputs = run(self, images, sizes)
        return {**outputs, "boxes": outputs["boxes"] + 1}

    monkeypatch.setattr(ExportedModel, "run", wrong)
    with pytest.raises(UserError, match="boxes of the golden input differ"):
        verify_golden(path).check(path)
    with pytest.raises(UserError, match=r"PRECISION is bfloat16, but files \.ts run in float32"):
        ExportedModel(path, "bfloat16")


def test_files_that_are_not_usable(export, tmp_path):
    cut = tmp_path / "cut.ts"
    with pytest.raises(UserError, match="does not exist"):
        ExportedModel(cut)
    cut.write_bytes(export("detr", "torchscript").path.read_bytes()[:5000])
    with pytest.raises(UserError, match="can't be opened"):
        ExportedModel(cut)
    foreign = tmp_path / "foreign.ts"
    torch.jit.trace(torch.nn.Identity(), torch.ones(1)).save(str(foreign))
    with pytest.raises(UserError, match=r"has no metadata .detr_d2_info"):
        ExportedModel(foreign)
