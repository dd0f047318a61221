"""Small models of every kind, and their exports, which are written once."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from detectron2.config import CfgNode

from detr_d2 import Detr
from detr_d2.export import FORMATS, GraphOptions, Verification, export_model

NAMES = ["cat", "dog", "bird", "fish", "horse"]
_MASKS = ("MODEL.MASK_ON", True)
_SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
_TIMM = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.TIMM.NAME")
_DC5 = {"DEPTH": 50, "RES2_OUT_CHANNELS": 16, "STEM_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 4, "RES5_DILATION": 2}
KINDS = {
    "detr": (),
    "smca": _SMCA,
    "multi-scale smca": (
        *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]),
    ),
    "top-down smca": (
        *(*_SMCA, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]),
        *("MODEL.DETR.TOP_DOWN.LEVELS", ["res3", "res4"], "MODEL.DETR.TOP_DOWN.BLOCKS", 1),
    ),
    "dc5 smca masks": (*_SMCA, *_MASKS, *(x for key, v in _DC5.items() for x in (f"MODEL.RESNETS.{key}", v))),
    "panoptic": (
        *(*_MASKS, "MODEL.DETR.HIDDEN_DIM", 128),
        *("MODEL.DETR.PANOPTIC.ENABLED", True, "MODEL.DETR.PANOPTIC.NUM_THINGS", 3),
        *("MODEL.DETR.CLASS_LOSS", "focal", "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", 0.2),
        *("MODEL.DETR.PANOPTIC.MERGE_AFTER_REMOVAL", False),
    ),
    "timm": (*_TIMM, "test_efficientnet.r160_in1k"),
    "timm, images of one size": (*_TIMM, "test_byobnet.r160_in1k"),
}


class Exported(NamedTuple):
    model: Detr
    cfg: CfgNode
    path: Path
    verification: Verification


@pytest.fixture(scope="session")
def export(make_model, make_cfg, tmp_path_factory):
    """Return a function that exports the small model of a kind in a format; each pair is exported once."""
    return _exporter(make_model, make_cfg, tmp_path_factory.getbasetemp() / "exports")


@cache  # The tests of the examples import the fixture, which pytest takes for another one.
def _exporter(make_model, make_cfg, folder: Path):
    folder.mkdir()

    @cache
    def run(kind: str, format: str, options: GraphOptions | None = None) -> Exported:
        # Without a package for it, the formats of PyTorch are tested.
        for package in FORMATS[format].packages:
            pytest.importorskip(package)
        keys = ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, "INPUT.MIN_SIZE_TEST", 64, *KINDS[kind])
        if "MODEL.TIMM.NAME" in keys:
            pytest.importorskip("timm")
        model, cfg = make_model(*keys), make_cfg(*keys)
        if model.has_masks:
            # Attention maps are small, and features may all be zero: without this, queries have the same mask.
            head = model.detr.mask_head
            head.lay1.weight.data[:, head.hidden_dim :] *= 1e5
            for norm in (head.gn1, head.gn2, head.gn3, head.gn4, head.gn5):
                norm.weight.data.fill_(1.0)
        path = folder / f"{len(list(folder.iterdir()))}{FORMATS[format].suffix}"
        return Exported(model, cfg, path, export_model(model, path, cfg=cfg, class_names=NAMES, options=options))

    return run
