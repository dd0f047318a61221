import sys

import pytest
from detectron2.modeling import build_backbone

from detr_d2.utils.errors import UserError


def test_missing_timm_says_how_to_install_it(make_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet50")
    with pytest.raises(UserError, match="pip install timm"):
        build_backbone(cfg)
