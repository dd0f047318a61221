"""The commands ``doctor`` and ``calibrate``, with a small model that is not trained, and its export."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detr_d2 import load_config
from detr_d2.cli.calibrate import main as calibrate
from detr_d2.cli.doctor import main as doctor
from detr_d2.cli.export import main as export
from detr_d2.cli.predict import main as predict
from detr_d2.export import ExportedModel

NAMES = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture
def flags(save_trained, tmp_path):
    """Return the flags of a model and of three images, whose classes are in another order than the model's."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i, (width, height) in enumerate([(90, 60), (50, 80), (64, 64)], start=1):
        pixels = np.random.default_rng(i).integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        box = {"bbox": [5, 5, 40, 50], "area": 2000, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": 3, **box})
    categories = [{"id": i, "name": name} for i, name in enumerate(reversed(NAMES), start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    config, weights = save_trained("MODEL.DETR.CLASS_LOSS", "focal", "MODEL.DETR.ENC_LAYERS", 1, class_names=NAMES)
    data = ["--annotations", str(tmp_path / "val.json"), "--images", str(tmp_path / "images")]
    return ["--config-file", str(config), "--weights", str(weights)], data


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def detections(path) -> list[tuple]:
    return sorted((x["image_id"], x["category_id"], x["score"]) for x in read(path / "predictions.json"))


def test_doctor(flags, tmp_path, capsys):
    """A page with as many images as findings, and a dataset that pycocotools opens; the same from an export."""
    model, data = flags
    assert doctor([*model, *data, "--output", str(tmp_path / "a"), "--top", "4", "--batch-size", "2"]) == 0
    assert "missing  4 of " in capsys.readouterr().out
    assert sorted(x.name for x in (tmp_path / "a").iterdir()) == ["report.html", "suggestions.json"]
    html = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    findings = read(tmp_path / "a" / "suggestions.json")["findings"]
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', html)) == len(findings) > 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert set(re.findall(r"<option>(\w+)</option>", html)) == set(NAMES)
    assert len(COCO(str(tmp_path / "a" / "suggestions.json")).imgs) == 3

    file = tmp_path / "model.ts"
    assert export([*model, "--output", str(file)]) == 0
    assert doctor(["--weights", str(file), *data, "--output", str(tmp_path / "b"), "--top", "4"]) == 0
    for a, b in zip(findings, read(tmp_path / "b" / "suggestions.json")["findings"], strict=True):
        assert (a["kind"], a["image_id"], a["annotation_id"]) == (b["kind"], b["image_id"], b["annotation_id"])
        assert a["suspicion"] == pytest.approx(b["suspicion"], abs=1e-3)


def test_calibrated_thresholds_are_applied(flags, tmp_path, capsys):
    """In the order of the model's classes, by checkpoint and export; not by the next calibration."""
    model, data = flags
    calibrated = tmp_path / "calibrated.yaml"
    assert calibrate([*model, *data, "--false-alarms", "0.7", "--output", str(calibrated)]) == 0
    table = dict(re.findall(r"^(\w+) +(0\.\d+) +3 ", capsys.readouterr().out, re.MULTILINE))
    assert list(table) == NAMES[::-1]
    thresholds = load_config(str(calibrated)).MODEL.DETR.TEST.CLASS_THRESHOLDS
    assert [f"{x:.4f}" for x in thresholds] == [table[name] for name in NAMES]
    assert min(thresholds) < max(thresholds)

    images = ["--input", str(tmp_path / "images"), "--no-overlays"]
    assert predict([*model, *images, "--score-thresh", "0", "--output", str(tmp_path / "all")]) == 0
    assert predict(["--config-file", str(calibrated), *images, "--output", str(tmp_path / "kept")]) == 0
    # Without categories in the config, ids count the model's classes from 1.
    expected = [x for x in detections(tmp_path / "all") if x[2] >= thresholds[x[1] - 1]]
    kept = detections(tmp_path / "kept")
    assert 0 < len(kept) < len(detections(tmp_path / "all"))
    assert kept == expected

    file = tmp_path / "model.ts"
    assert export(["--config-file", str(calibrated), "--output", str(file)]) == 0
    assert ExportedModel(file).class_thresholds == thresholds
    assert predict(["--weights", str(file), *images, "--output", str(tmp_path / "exported")]) == 0
    exported = detections(tmp_path / "exported")
    assert [x[:2] for x in exported] == [x[:2] for x in kept]
    again = tmp_path / "again.yaml"
    assert calibrate(["--weights", str(file), *data, "--false-alarms", "0.7", "--output", str(again)]) == 0
    assert load_config(str(again)).MODEL.DETR.TEST.CLASS_THRESHOLDS == pytest.approx(thresholds, abs=1e-4)


def test_mistakes(flags, tmp_path, capsys):
    """One line that tells the fix, and no output."""
    model, data = flags
    content = read(tmp_path / "val.json")
    content["categories"][0]["name"] = "cow"
    (tmp_path / "other.json").write_text(json.dumps(content))
    out = ["--output", str(tmp_path / "out")]
    for main, words, message in (
        (doctor, [*model, *data[:2], "--images", "nowhere", *out], "--images nowhere is not a folder"),
        (doctor, [*model, "--annotations", str(tmp_path / "other.json"), *data[2:], *out], "cow is not among those"),
        (doctor, [*data, *out], "--config-file is missing"),
        (calibrate, [*model, *data, "--recall", "95", *out], "--recall is 95.0: give a number between 0 and 1"),
        (calibrate, [*model, *data, "--recall", "0.99", *out], "--recall 0.99 can't be guaranteed for any class"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert not list(tmp_path.glob("out*"))
