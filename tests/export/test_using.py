"""Exported files in the place of checkpoints, through the commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detr_d2.cli.eval import main as evaluate
from detr_d2.cli.export import FORMATS as FLAG_VALUES
from detr_d2.cli.export import main as export_command
from detr_d2.cli.predict import main as predict
from detr_d2.export import FORMATS, ExportedModel, is_exported, prepare_for_inference, use_exported
from detr_d2.utils.errors import UserError

from .conftest import NAMES
from .test_formats import assert_same_results


@pytest.fixture
def images(tmp_path):
    """Two images and their annotations, in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    records, annotations = [], []
    for i, (width, height) in enumerate([(90, 60), (50, 80)], start=1):
        pixels = np.random.default_rng(i).integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        records.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": i, **box})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def trained(save_trained):
    return save_trained("MODEL.DETR.ENC_LAYERS", 1, "INPUT.FORMAT", "BGR", class_names=NAMES)


def test_commands_take_a_file_for_a_checkpoint(trained, images, catalogs, tmp_path, capsys):
    """The same predictions and the same results of an evaluation, whatever else the config says of the images."""
    config, weights = trained
    file = tmp_path / "model.ts"
    assert export_command(["--config-file", str(config), "--weights", str(weights), "--output", str(file)]) == 0
    assert "5 images of 64 x 64, 97 x 81, 50 x 141, 128 x 65, padded" in capsys.readouterr().out
    assert export_command(["--verify", str(file)]) == 0
    assert "gives the outputs that it was exported with" in capsys.readouterr().out

    flags = ["--input", str(images), "--score-thresh", "0", "--no-overlays", "--batch-size", "2"]
    assert (
        predict([*flags, "--output", str(tmp_path / "a"), "--config-file", str(config), "--weights", str(weights)]) == 0
    )
    assert predict([*flags, "--output", str(tmp_path / "b"), "--weights", str(file)]) == 0
    a, b = (json.loads((tmp_path / x / "predictions.json").read_text()) for x in "ab")
    assert_same_detections(a, b)
    assert len(a) == 2 * 7
    a, b = (json.loads((tmp_path / x / "images.json").read_text()) for x in "ab")
    assert a == b

    data = ["--val-json", str(tmp_path / "val.json"), "--val-images", str(images), "DATALOADER.NUM_WORKERS", "0"]
    results = []
    for name, path, options in (("c", weights, ()), ("d", file, ("INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", "90"))):
        words = ["--config-file", str(config), *data, "--output", str(tmp_path / name)]
        assert evaluate([*words, "MODEL.WEIGHTS", str(path), *options]) == 0
        results.append(json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text()))
    assert_same_detections(*results)
    assert len(results[0]) == 2 * 7


def assert_same_detections(a: list[dict], b: list[dict]) -> None:
    a, b = (sorted(x, key=lambda y: (y["image_id"], y["category_id"], y["score"])) for x in (a, b))
    assert [x["category_id"] for x in a] == [x["category_id"] for x in b]
    assert np.allclose([x["score"] for x in a], [x["score"] for x in b], atol=2e-5)
    assert np.allclose([x["bbox"] for x in a], [x["bbox"] for x in b], atol=0.02)


@pytest.mark.slow
def test_backend_exports_once(trained, make_cfg, make_model, make_inputs, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1, "MODEL.DETR.TEST.BACKEND", "openvino")
    cfg, model = make_cfg(*keys), make_model(*keys)
    first = prepare_for_inference(model, cfg, NAMES)
    assert sorted(x.suffix for x in (tmp_path / "detr_d2" / "exports").iterdir()) == [".bin", ".xml"]
    inputs = make_inputs([(64, 80), (50, 60)], [0, 0])
    with torch.no_grad():
        expected = [model([x])[0] for x in inputs]
    for found, x in zip(first(inputs), expected, strict=True):
        assert_same_results(found, x)

    def fail(*args, **settings):
        raise AssertionError("exported again")

    monkeypatch.setattr("detr_d2.export.using.export_model", fail)
    assert prepare_for_inference(model, cfg, NAMES).path == first.path
    with torch.no_grad():
        model.detr.class_embed.bias += 1
    with pytest.raises(AssertionError, match="exported again"):
        prepare_for_inference(model, cfg, NAMES)


def test_pytorch_is_the_default_backend(make_cfg, make_model):
    model = prepare_for_inference(make_model(), make_cfg(), NAMES)
    assert model.optimized


def test_facts_of_a_file_replace_those_of_the_config(export, make_cfg):
    path = export("detr", "torchscript").path
    cfg = make_cfg("INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", 1, "MODEL.DETR.NUM_CLASSES", 9)
    cfg.MODEL.WEIGHTS = str(path)
    cfg.freeze()
    exported = use_exported(cfg)
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.DETR.NUM_CLASSES) == ("RGB", 64, 5)
    assert cfg.is_frozen()
    assert exported.info.class_names == NAMES
    assert isinstance(exported, ExportedModel)


def test_mistakes(tmp_path, capsys):
    """One line that tells the fix."""
    for words, message in (
        (["--output", str(tmp_path / "a.ts")], "--config-file is missing"),
        (["--verify", str(tmp_path / "a.ts")], "a.ts does not exist"),
        (["--verify", str(tmp_path / "a.pth")], "a.pth is not an exported model"),
    ):
        assert export_command(words) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert predict(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 1


def test_formats_are_those_of_the_flag():
    assert tuple(FORMATS) == FLAG_VALUES
    assert is_exported("a/b.onnx")
    assert not is_exported("detr://detr-r50")
    assert not is_exported("")


def test_images_of_more_than_8_bits_need_a_file_that_takes_them(export):
    """Where the file takes 8 bits, their values would wrap around."""
    exported = ExportedModel(export("detr", "torchscript").path)
    with pytest.raises(UserError, match=r"takes images of 8 bits.*--dtype float32"):
        exported([{"image": torch.full((3, 64, 64), 1000.0)}])
    # As Detectron2's DefaultPredictor gives images of 8 bits.
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    a, b = exported([{"image": image}, {"image": image.float()}])
    assert torch.equal(a["instances"].scores, b["instances"].scores)
