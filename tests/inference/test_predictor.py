import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from detr_d2 import DetrDatasetMapper
from detr_d2.inference import optimization
from detr_d2.inference.predictor import Predictor, classes_in_checkpoint, prediction_config
from detr_d2.utils.errors import UserError

NAMES = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture(autouse=True)
def _log_info(caplog):
    caplog.set_level(logging.INFO, logger="detr_d2")


def load(config, weights, *options) -> Predictor:
    return Predictor.from_config(prediction_config(str(config), ["MODEL.WEIGHTS", str(weights), *options]))


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_results_are_those_of_the_mapper_and_the_model(save_trained, tmp_path, image_format):
    """One by one, and in batches of several sizes (one image beside larger ones)."""
    predictor = load(*save_trained(class_names=NAMES), "INPUT.FORMAT", image_format)
    generator = np.random.default_rng(0)
    sizes = [(60, 90), (80, 70), (60, 90), (30, 300), (60, 90)]
    images = [generator.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    cfg = prediction_config(str(tmp_path / "config.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")])
    cfg.INPUT.FORMAT = image_format
    mapper = DetrDatasetMapper(cfg, is_train=False)
    batched = predictor(images, batch_size=2)
    for image, together in zip(images, batched, strict=True):
        Image.fromarray(image).save(tmp_path / "image.png")
        record = mapper({"file_name": str(tmp_path / "image.png")})
        assert torch.equal(predictor.prepare(image)["image"], record["image"])
        with torch.no_grad():
            expected = predictor.model([record])[0]["instances"]
        (alone,) = predictor([image])
        assert alone.image_size == image.shape[:2]
        for instances in (alone, together):
            assert_close(instances.scores, expected.scores, atol=1e-5, rtol=0)
            assert_close(instances.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    assert predictor([]) == []


def test_images_are_read_as_they_are_needed(save_trained):
    predictor = load(*save_trained())
    read = []

    def images():
        for i in range(9):
            read.append(i)
            yield i, np.zeros((20, 20, 3), dtype=np.uint8)

    results = predictor.predict(images(), batch_size=2)
    assert next(results)[0] == 0
    assert len(read) <= 8
    assert [key for key, _, _ in results] == list(range(1, 9))


def test_the_number_of_classes_is_the_checkpoints(save_trained, caplog):
    config, weights = save_trained(class_names=NAMES, config=("MODEL.DETR.NUM_CLASSES", 80))
    predictor = load(config, weights)
    assert predictor.categories.names == NAMES
    assert predictor.model.detr.class_embed.out_features == 6
    assert f"MODEL.DETR.NUM_CLASSES is 5, as in {weights} (the config says 80)" in caplog.text
    with pytest.raises(UserError, match=r"holds a class head of 6 rows \(5 classes\).*NUM_CLASSES\s+7"):
        load(config, weights, "MODEL.DETR.NUM_CLASSES", "7")


def test_a_head_over_coco_ids_is_one_of_80_classes(make_cfg, make_original, tmp_path):
    path = tmp_path / "original.pth"
    torch.save({"model": make_original(make_cfg(), num_classes=91).state_dict()}, path)
    assert classes_in_checkpoint(str(path)) == 80
    torch.save({"model": make_original(make_cfg(), num_classes=4).state_dict()}, path)
    assert classes_in_checkpoint(str(path)) == 4


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("", "MODEL.WEIGHTS is empty"),
        ("torchvision://resnet50", "a backbone that training starts from"),
        ("nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_never_without_trained_weights(save_trained, weights, words):
    config, _ = save_trained()
    with pytest.raises(UserError, match=words):
        load(config, weights)


def test_the_precision_is_the_configs(save_trained, monkeypatch):
    monkeypatch.setattr(optimization, "_is_fast", lambda *_: True)
    config, weights = save_trained()
    image = np.random.default_rng(0).integers(256, size=(60, 90, 3), dtype=np.uint8)
    exact, rounded = (load(config, weights, "MODEL.DETR.TEST.PRECISION", name) for name in ("float32", "bfloat16"))
    assert rounded.model.detr.input_proj.weight.dtype == torch.bfloat16
    (expected,), (found,) = exact([image]), rounded([image])
    assert_close(found.scores, expected.scores, atol=0.02, rtol=0)


def test_never_with_a_backbone_alone(save_trained, tmp_path):
    config, weights = save_trained()
    model = torch.load(weights, weights_only=True)["model"]
    prefix = "detr.backbone.0.backbone."
    backbone = {name.removeprefix(prefix): x for name, x in model.items() if name.startswith(prefix)}
    torch.save({"model": backbone, "__author__": "torchvision"}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"backbone\.pth"):
        load(config, tmp_path / "backbone.pth")


def test_another_architecture_is_refused(save_trained):
    config, weights = save_trained(config=("MODEL.DETR.TRANSFORMER", "SmcaTransformer"))
    with pytest.raises(UserError, match="is a plain DETR checkpoint; the config builds SmcaTransformer"):
        load(config, weights)


def test_the_cpu_where_there_is_no_gpu(save_trained, monkeypatch, caplog):
    config, weights = save_trained(config=("MODEL.DEVICE", "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prediction_config(str(config), ["MODEL.WEIGHTS", str(weights)]).MODEL.DEVICE == "cpu"
    assert "no CUDA GPU" in caplog.text
    with pytest.raises(UserError, match=r"MODEL\.DEVICE is cuda"):
        load(config, weights, "MODEL.DEVICE", "cuda")
