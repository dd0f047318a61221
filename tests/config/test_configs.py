"""Tests that build every config in configs/, train a step and evaluate, with a small transformer on small images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.events import EventStorage
from PIL import Image

from detr_d2.config import check_model_config, check_pixel_statistics, load_config
from detr_d2.data.shapes import ShapesSpec, register_shapes
from detr_d2.engine import Trainer

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(str(x.relative_to(FOLDER)) for x in FOLDER.rglob("*.yaml") if not x.name.startswith("Base"))
SHRINK = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """Return the name of a dataset of two images and two classes, with boxes and polygons."""
    folder = tmp_path_factory.mktemp("dataset")
    pixels = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in (1, 2)]
    annotations = []
    for image in images:
        Image.fromarray(pixels.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / image["file_name"])
        for category in (1, 2):
            x, y, w, h = 30 * category - 20, 10, 20, 30
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    name = "test_configs"
    register_coco_instances(
        name, {"thing_classes": ["class 1", "class 2"]}, str(folder / "annotations.json"), str(folder)
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def panoptic_dataset(tmp_path_factory):
    """Return the name of a panoptic dataset of two images, with the classes of the rendered shapes."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DETR_D2_CACHE", str(tmp_path_factory.mktemp("cache")))
        name = "test_configs_shapes"
        register_shapes(name, ShapesSpec(num_images=2))
        yield f"{name}_panoptic"
    for kind in (name, f"{name}_panoptic"):
        DatasetCatalog.remove(kind)
        MetadataCatalog.remove(kind)


def shrink(cfg: CfgNode, dataset: str, output: Path) -> CfgNode:
    """Make sizes smaller, in proportion where they belong together, and remove the weights; keep all else."""
    detr, crop, resnets = cfg.MODEL.DETR, cfg.INPUT.CROP, cfg.MODEL.RESNETS
    detr.HIDDEN_DIM, detr.DIM_FEEDFORWARD, detr.NUM_OBJECT_QUERIES = 32, 48, 8
    detr.NUM_CLASSES = len(MetadataCatalog.get(dataset).thing_classes)
    detr.ENC_LAYERS = detr.DEC_LAYERS = 1
    # Detectron2's small ResNets come in one width.
    if resnets.DEPTH > 34:
        for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP"):
            resnets[key] //= 4
    for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
        cfg.INPUT[key] = _divided(cfg.INPUT[key])
    crop.SIZE, crop.RESIZE_SIZES = _divided(crop.SIZE), _divided(crop.RESIZE_SIZES)
    cfg.MODEL.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.OUTPUT_DIR = str(output)
    cfg.freeze()
    return cfg


def _divided(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return value // SHRINK if isinstance(value, int) else tuple(x // SHRINK for x in value)


@pytest.fixture(params=CONFIGS)
def cfg(request) -> CfgNode:
    return load_config(str(FOLDER / request.param), ["MODEL.DEVICE", "cpu"])


def test_there_are_configs():
    assert {"detr_256_6_6_torchvision.yaml", "detr_r50_640.yaml"} <= set(CONFIGS)


def test_config_trains_a_step_and_evaluates(cfg, request, tmp_path):
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        pytest.importorskip("timm")
    check_model_config(cfg)
    is_panoptic = cfg.DATASETS.TRAIN[0].endswith("_panoptic")
    dataset = request.getfixturevalue("panoptic_dataset" if is_panoptic else "dataset")
    trainer = Trainer(shrink(cfg, dataset, tmp_path))
    network = trainer.model.detr
    head = network.mask_head.out_lay.weight if cfg.MODEL.DETR.FROZEN_WEIGHTS else network.class_embed.weight
    before = head.detach().clone()
    trainer.iter = 0
    trainer.model.train()
    with EventStorage(0) as storage:
        trainer.run_step()
        assert math.isfinite(storage.latest()["total_loss"][0])
    trained = {name: x.grad for name, x in trainer.model.named_parameters() if x.requires_grad}
    assert not [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()]
    assert not torch.equal(head, before)
    results = Trainer.test(trainer.cfg, trainer.model)
    assert "AP" in results["bbox"]
    assert ("segm" in results) == cfg.MODEL.MASK_ON
    assert ("panoptic_seg" in results) == cfg.MODEL.DETR.PANOPTIC.ENABLED


def test_pixels_go_with_the_weights(cfg):
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        pytest.importorskip("timm")
    assert check_pixel_statistics(cfg) == []
