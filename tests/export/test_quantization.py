"""Quantized exports: which part is quantized, what is compared, and what is refused."""

import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr_d2 import UserError
from detr_d2.cli.export import main as export_command
from detr_d2.config.checks import check_precision
from detr_d2.export import FORMATS, CalibrationImages, ExportedModel, Quantization, quantization, verify_golden
from detr_d2.export.formats import quiet
from detr_d2.export.quantization import check_quantizable, quantize
from detr_d2.export.verification import make_images, unmatched

from .conftest import NAMES

IMAGES = make_images([(64, 96), (80, 64), (70, 70), (96, 128)], seed=7)


@pytest.fixture
def export_int8(export, tmp_path):
    """Return a function that quantizes the small model of a kind, and returns the float32 export and the new path."""

    def run(kind: str, format: str, **options):
        exported = export(kind, format)
        path = tmp_path / exported.path.name
        quantize(ExportedModel(exported.path), path, Quantization(**{"images": IMAGES, **options}))
        return exported, path

    return run


@pytest.fixture
def copies(monkeypatch):
    """Let TorchScript files be "quantized" by copying them: what surrounds quantization is tested in a second."""

    def copy(source, target, inputs):
        assert [set(x) for x in inputs] == [{"images", "sizes"}] * len(inputs)
        shutil.copy(source, target)

    def set_texts(path, texts):
        with quiet():
            torch.jit.save(torch.jit.load(str(path)), str(path), _extra_files=dict(texts))

    monkeypatch.setitem(quantization._QUANTIZERS, ".ts", quantization._Quantizer(copy, set_texts))


def quantized_modules(path) -> set[str]:
    """Return the modules of an OpenVINO file whose operations read quantized activations."""
    root = ElementTree.parse(path).getroot()
    layers = {x.get("id"): x for x in root.iter("layer")}
    edges = [(layers[x.get("from-layer")], layers[x.get("to-layer")]) for x in root.iter("edge")]
    return {to.get("name").split("/")[0] for source, to in edges if source.get("type") == "FakeQuantize"}


@pytest.mark.slow
def test_openvino_quantizes_backbone_and_encoder(export_int8):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    exported, path = export_int8("detr", "openvino")
    modules = quantized_modules(path)
    for part in ("backbone.0.backbone.stem.conv1", "input_proj", "transformer.encoder.layers.0.linear1"):
        assert f"__module.network.{part}" in modules
    assert not [x for x in modules if "decoder" in x or "embed" in x]
    check_int8_file(path, exported, smaller=path.with_suffix(".bin"))


@pytest.mark.slow
def test_onnx_quantizes_backbone_and_encoder(export_int8):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    exported, path = export_int8("detr", "onnx")
    graph = onnx.load(str(path)).graph
    dequantized = {name for x in graph.node if x.op_type == "DequantizeLinear" for name in x.output}
    layers = [x for x in graph.node if x.op_type in ("Conv", "MatMul", "Gemm")]
    quantized = [x for x in layers if set(x.input[:2]) <= dequantized]
    convolutions = sum(isinstance(x, torch.nn.Conv2d) for x in exported.model.detr.modules())
    # Of the encoder's layer the output projection and the linear layers.
    assert [x.op_type for x in quantized] == ["Conv"] * convolutions + ["MatMul"] * 3
    check_int8_file(path, exported, smaller=path)


def check_int8_file(path, exported, smaller) -> None:
    """Check facts, golden input and results of a quantized file."""
    model = ExportedModel(path)
    assert model.info.precision == "int8"
    assert model.info.quantization == {"calibration_images": 4}
    assert ExportedModel(exported.path).info.precision == "float32"
    assert verify_golden(path).largest == 0
    inputs = [{"image": x} for x in IMAGES[:2]]
    with torch.no_grad():
        expected = [exported.model([x])[0] for x in inputs]
    assert unmatched(model(inputs), expected) < 0.2
    difference = model(inputs)[0]["instances"].scores.sort()[0] - expected[0]["instances"].scores.sort()[0]
    assert 1e-6 < difference.abs().max() < 0.1
    assert smaller.stat().st_size < 0.7 * exported.path.with_suffix(smaller.suffix).stat().st_size


def results(*detections) -> dict:
    """Return the results of an image from left edges of boxes of width and height 10, scores and classes."""
    instances = Instances((50, 50))
    left, scores, classes = (
        (torch.tensor(x) for x in zip(*detections, strict=True)) if detections else [torch.ones(0)] * 3
    )
    instances.pred_boxes = Boxes(torch.stack([left, 0 * left, left + 10, 0 * left + 10], -1))
    instances.scores, instances.pred_classes = scores, classes
    return {"instances": instances}


def test_unmatched_detections():
    """A shift by 1 of 10 pixels is an overlap of 9 / 11, by 2 of 8 / 12."""
    expected = [results((0.0, 0.9, 1), (20.0, 0.5, 2), (30.0, 0.44, 3)), results()]
    assert unmatched(expected, expected) == 0
    assert unmatched([results((21.0, 0.65, 2), (1.0, 0.75, 1)), results((0.0, 0.9, 1))], expected) == 0
    for other in ((2.0, 0.9, 1), (0.0, 0.65, 1), (0.0, 0.9, 2)):
        assert unmatched([results(other, (20.0, 0.5, 2)), results()], expected) == pytest.approx(0.5)
    assert unmatched([results(), results()], [results(), results()]) == 0


def test_files_that_lose_too_much_are_refused(copies, export_int8):
    values = iter([80.0, 79.4])
    with pytest.raises(UserError, match=r"80\.00 in float32 and 79\.40 in int8.*0\.5 points of --max-ap-drop"):
        export_int8("detr", "torchscript", evaluate=lambda model: next(values))
    values = iter([80.0, 79.4, 80.0, 79.4])
    _, path = export_int8("detr", "torchscript", evaluate=lambda model: next(values), max_ap_drop=0.7)
    facts = {"calibration_images": 4, "ap_float32": 80.0, "ap_int8": 79.4}
    assert ExportedModel(path).info.quantization == facts
    path.unlink()
    export_int8("detr", "torchscript", evaluate=lambda model: next(values), force=True)


def test_files_that_detect_otherwise_are_refused(copies, export_int8, tmp_path, monkeypatch):
    run = ExportedModel.run

    def wrong(self, images, sizes):
        outputs = run(self, images, sizes)
        return {**outputs, "labels": outputs["labels"] + 1} if self.path.parent == tmp_path else outputs

    monkeypatch.setattr(ExportedModel, "run", wrong)
    with pytest.raises(UserError, match=r"100% of .* in 4 calibration images have no counterpart, more than 10%"):
        export_int8("detr", "torchscript")
    export_int8("detr", "torchscript", force=True)


def test_golden_detections(copies, export_int8, monkeypatch):
    """Small differences of other processors pass, other detections don't."""
    _, path = export_int8("detr", "torchscript")
    run = ExportedModel.run

    def shifted(pixels):
        return lambda *args: {name: x + pixels * (name == "boxes") for name, x in run(*args).items()}

    monkeypatch.setattr(ExportedModel, "run", shifted(0.1))
    verify_golden(path).check(path)
    monkeypatch.setattr(ExportedModel, "run", shifted(1000))
    with pytest.raises(UserError, match=r"100% of .* in the golden input have no counterpart, more than 10%"):
        verify_golden(path).check(path)


def test_mistakes(copies, export_int8, monkeypatch):
    with pytest.raises(UserError, match=r"int8 is for files \.onnx and .*, not \.pt2"):
        check_quantizable(FORMATS["torch_export"])
    with pytest.raises(UserError, match="there are none: add images"):
        export_int8("detr", "torchscript", images=[])
    with pytest.raises(UserError, match="write a file with detr-d2 export --precision int8"):
        check_precision("int8")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"pip install 'detr_d2\[openvino-int8\]'"):
        check_quantizable(FORMATS["openvino"])


@pytest.fixture
def data(tmp_path):
    """Return the flags of a dataset with three images of 40 x 60 pixels."""
    from PIL import Image

    records = []
    for i in range(1, 4):
        pixels = np.random.default_rng(i).integers(256, size=(40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        records.append({"id": i, "file_name": f"{i}.png", "width": 60, "height": 40})
    box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
    annotations = [{"id": i, "image_id": i, "category_id": i, **box} for i in range(1, 4)]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    return [
        x
        for split in ("train", "val")
        for x in (f"--{split}-json", str(tmp_path / "data.json"), f"--{split}-images", str(tmp_path))
    ]


def test_command(copies, data, save_trained, catalogs, tmp_path, capsys, monkeypatch):
    """AP is evaluated before and after; images are those of the training data, as they are resized in inference."""
    sizes = []
    monkeypatch.setattr(
        "detr_d2.export.quantization._golden",
        lambda model, images, golden=quantization._golden: (
            sizes.extend(x.shape for x in images) or golden(model, images)
        ),
    )
    config, weights = save_trained("MODEL.DETR.ENC_LAYERS", 1, "INPUT.MIN_SIZE_TEST", 64, class_names=NAMES)
    words = ["--config-file", str(config), "--weights", str(weights), "--output", str(tmp_path / "model.ts")]
    options = ["--precision", "int8", "--calibration", "2", *data, "DATALOADER.NUM_WORKERS", "0"]
    assert export_command([*words, *options]) == 0
    assert "2 calibration images" in capsys.readouterr().out
    assert sizes == [(3, 64, 96)] * 2
    files = {x.name for x in tmp_path.iterdir()}
    facts = ExportedModel(tmp_path / "model.ts").info.quantization
    assert facts["calibration_images"] == 2
    assert facts["ap_float32"] == facts["ap_int8"] >= 0
    assert export_command(["--verify", str(tmp_path / "model.ts")]) == 0
    assert export_command([*words[:-1], str(tmp_path / "lost.ts"), *options, "--max-ap-drop", "-1"]) == 1
    assert {x.name for x in tmp_path.iterdir()} == files


def test_calibration_images_are_needed(make_cfg):
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN is empty"):
        CalibrationImages(cfg, 4)
