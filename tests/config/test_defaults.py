import pytest
from detectron2.config import get_cfg

from detr_d2 import add_detr_config

# What YAML files written for the original project's wrapper may hold, and what they meant there.
NAMES_THAT_STAY = {
    "NUM_CLASSES": 80,
    "FROZEN_WEIGHTS": "",
    "GIOU_WEIGHT": 2.0,
    "L1_WEIGHT": 5.0,
    "DEEP_SUPERVISION": True,
    "NO_OBJECT_WEIGHT": 0.1,
    "NHEADS": 8,
    "DROPOUT": 0.1,
    "DIM_FEEDFORWARD": 2048,
    "ENC_LAYERS": 6,
    "DEC_LAYERS": 6,
    "PRE_NORM": False,
    "HIDDEN_DIM": 256,
    "NUM_OBJECT_QUERIES": 100,
}


def test_names_and_defaults_that_stay():
    cfg = get_cfg()
    add_detr_config(cfg)
    assert {name: cfg.MODEL.DETR[name] for name in NAMES_THAT_STAY} == NAMES_THAT_STAY
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"
    assert cfg.SOLVER.BACKBONE_MULTIPLIER == 0.1


def test_the_recipe(repository):
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_file(str(repository / "configs" / "detr_256_6_6_torchvision.yaml"))
    solver = cfg.SOLVER
    assert (1e-4, pytest.approx(1e-5)) == (solver.BASE_LR, solver.BASE_LR * solver.BACKBONE_MULTIPLIER)
    assert (solver.IMS_PER_BATCH, solver.WEIGHT_DECAY, solver.CLIP_GRADIENTS.CLIP_VALUE) == (64, 1e-4, 0.1)
    images = 118287
    assert solver.MAX_ITER * solver.IMS_PER_BATCH / images == pytest.approx(300, rel=1e-3)
    assert solver.STEPS[0] * solver.IMS_PER_BATCH / images == pytest.approx(200, rel=1e-3)
    assert pytest.approx([255 * x for x in (0.485, 0.456, 0.406)]) == cfg.MODEL.PIXEL_MEAN
    assert pytest.approx([255 * x for x in (0.229, 0.224, 0.225)]) == cfg.MODEL.PIXEL_STD
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2
