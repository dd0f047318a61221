"""Images of other bands than RGB, from files and RGB weights to training, evaluation, prediction and exports."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_d2 import register_coco_dataset
from detr_d2.cli.check import main as check
from detr_d2.cli.export import main as export
from detr_d2.cli.predict import main as predict
from detr_d2.cli.train import main as train
from detr_d2.inference.predictor import Predictor

HEIGHT, WIDTH = 48, 64
STEM = "detr.backbone.0.backbone.stem.conv1.weight"
KINDS = {1: (0, 65536, np.uint16), 4: (0, 256, np.uint8)}


class Data:
    """Two images of random pixels with a box each, 16-bit gray or 8-bit of four bands, and a config for them."""

    def __init__(self, folder: Path, channels: int, make_cfg):
        self.folder, self.channels, self.json, self.images = folder, channels, folder / "a.json", folder / "images"
        self.images.mkdir()
        low, high, dtype = KINDS[channels]
        shape = (2, HEIGHT, WIDTH, *((channels,) if channels > 1 else ()))
        self.pixels = np.random.default_rng(0).integers(low, high, shape, dtype=dtype)
        if channels > 1:
            # Bands that can be told apart by their means.
            self.pixels = self.pixels // np.arange(1, channels + 1, dtype=dtype)
        for i, pixels in enumerate(self.pixels):
            Image.fromarray(pixels).save(self.images / f"{i}.png")
        box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0, "category_id": 1}
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(2)],
            "annotations": [{"id": 1 + i, "image_id": i, **box} for i in range(2)],
            "categories": [{"id": i + 1, "name": f"thing {i}"} for i in range(5)],
        }
        self.json.write_text(json.dumps(content))
        self.mean, self.std = ([value] * channels for value in ((high - low) / 2.0, (high - low) / 4.0))
        self.options = (
            *("INPUT.CHANNELS", channels, "MODEL.PIXEL_MEAN", self.mean, "MODEL.PIXEL_STD", self.std),
            *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1, "INPUT.MIN_SIZE_TEST", 64),
            *("INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.CROP.RESIZE_SIZES", (40,), "INPUT.CROP.SIZE", (24, 40)),
            *("INPUT.COLOR_JITTER", 0.2, "INPUT.MOSAIC", 0.5, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2),
            *("DATALOADER.NUM_WORKERS", 0, "TEST.EVAL_PERIOD", 0, "OUTPUT_DIR", str(folder / "run")),
        )
        self.config = folder / "config.yaml"
        self.config.write_text(make_cfg(*self.options).dump())
        self.weights = folder / "run" / "model_final.pth"

    def predict(self, name: str, *words: object) -> list[dict]:
        """Return the predictions of the command on the images."""
        output = self.folder / name
        flags = ["--input", self.images, "--output", output, "--score-thresh", 0, *words]
        assert predict(list(map(str, flags))) == 0
        return json.loads((output / "predictions.json").read_text())


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory, make_cfg, make_model):
    """Return the data that a model was trained on from a checkpoint for RGB, as its commands do."""
    data = Data(tmp_path_factory.mktemp("channels"), request.param, make_cfg)
    start = make_model("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1).state_dict()
    torch.save({"model": start}, data.folder / "rgb.pth")
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    files = ["--train-json", data.json, "--train-images", data.images, "--val-json", data.json, "--val-images"]
    words = ["--config-file", data.config, *files, data.images, "MODEL.WEIGHTS", data.folder / "rgb.pth"]
    assert not train([*map(str, words)])
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(entries)
    return data


def test_training_evaluation_and_prediction(trained):
    """The first convolution has the channels of the images; tiles give more predictions than there are queries."""
    metrics = (trained.weights.parent / "metrics.json").read_text().splitlines()
    assert any("bbox/AP" in json.loads(line) for line in metrics)
    weights = torch.load(trained.weights)["model"]
    assert weights[STEM].shape[1] == trained.channels
    model = ("--config-file", trained.config, "--weights", trained.weights)
    whole = trained.predict("whole", *model)
    assert len(whole) == 2 * 7
    assert len(trained.predict("tiles", *model, "--tiles", 40, "--overlap", 0.2)) > 7


def test_overlays_show_gray_or_three_bands(trained):
    """Without detections, which no score reaches."""
    trained.predict("plain", "--config-file", trained.config, "--weights", trained.weights, "--score-thresh", 1)
    overlay = np.asarray(Image.open(trained.folder / "plain" / "overlays" / "0.png")).astype(float)
    pixels = trained.pixels[0].reshape(HEIGHT, WIDTH, trained.channels)[:, :, :3] / (
        257 if trained.channels == 1 else 1
    )
    # Only means: some versions of Matplotlib shift the image by a part of a pixel.
    np.testing.assert_allclose(overlay.mean((0, 1)), np.broadcast_to(pixels.mean((0, 1)), 3), atol=3)


def test_prediction_normalizes_the_values_of_the_file(trained, make_cfg):
    """Computed by hand for an image that is not resized."""
    cfg = make_cfg(*trained.options, "MODEL.WEIGHTS", str(trained.weights), "INPUT.MIN_SIZE_TEST", 0)
    predictor = Predictor.from_config(cfg)
    pixels = trained.pixels[0].reshape(HEIGHT, WIDTH, trained.channels).astype(np.float32)
    batch = predictor.model.preprocess_image([predictor.prepare(pixels)])
    expected = (pixels - trained.mean[0]) / trained.std[0]
    np.testing.assert_allclose(batch.tensor[0].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_check_prints_statistics(trained, capsys, catalogs, tmp_path):
    datasets = ("DATASETS.TRAIN", "('bands',)", "DATASETS.TEST", "()")
    words = ["--config-file", trained.config, "--output", tmp_path, *datasets]
    register_coco_dataset("bands", str(trained.json), str(trained.images))
    assert check(list(map(str, words))) == 0
    sampled = trained.pixels[:, ::4, ::4].reshape(-1, trained.channels)
    expected = [f"{x:.5g}" for x in sampled.mean(0, dtype=np.float64)]
    text = " ".join(capsys.readouterr().out.split())
    found = text.partition('MODEL.PIXEL_MEAN "[')[2].partition("]")[0].split(", ")
    np.testing.assert_allclose(np.float64(found), np.float64(expected), rtol=1e-4)
    assert {x.name for x in tmp_path.glob("*.png")} == {"preview.png", "training.png"}
    files = ["--train-json", trained.json, "--train-images", trained.images, "--channels", 2]
    assert check(list(map(str, files))) == 1
    assert f"has {trained.channels} band" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_exported_files_predict_the_same(trained):
    """One format for each number of channels: exports take long, and verify themselves."""
    suffix = {1: ".ts", 4: ".xml"}[trained.channels]
    if suffix == ".xml":
        pytest.importorskip("openvino")
    file = trained.folder / f"model{suffix}"
    model = ("--config-file", trained.config, "--weights", trained.weights)
    assert not export([*map(str, model), "--output", str(file)])
    expected = trained.predict("expected", *model)
    found = trained.predict("found", "--weights", file)
    for a, b in zip(found, expected, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
        assert a["bbox"] == pytest.approx(b["bbox"], abs=0.05)


def test_a_video_is_refused(trained, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (WIDTH, HEIGHT))
    writer.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    writer.release()
    words = ["--config-file", trained.config, "--weights", trained.weights, "--input", tmp_path / "a.avi"]
    assert predict([*map(str, words), "--output", str(tmp_path / "out")]) == 1
    assert f"a.avi has 3 bands, but INPUT.CHANNELS is {trained.channels}" in capsys.readouterr().err


def test_weights_for_rgb_are_not_evaluated(trained, capsys):
    words = ["--config-file", trained.config, "--weights", trained.folder / "rgb.pth", "--input", trained.images]
    assert predict([*map(str, words), "--output", str(trained.folder / "refused")]) == 1
    assert "is for images of 3 channels; the model has" in capsys.readouterr().err
