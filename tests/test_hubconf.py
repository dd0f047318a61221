import io

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detr.models.segmentation import PostProcessPanoptic
from PIL import Image

from detr_d2 import Detr, UserError, model_zoo
from detr_d2.modeling.postprocessing import box_instances

# The original's names, and the models that they stand for.
BOX = {
    "detr_resnet50": "detr-r50",
    "detr_resnet50_dc5": "detr-r50-dc5",
    "detr_resnet101": "detr-r101",
    "detr_resnet101_dc5": "detr-r101-dc5",
}
PANOPTIC = {
    "detr_resnet50_panoptic": "detr-r50-panoptic",
    "detr_resnet50_dc5_panoptic": "detr-r50-dc5-panoptic",
    "detr_resnet101_panoptic": "detr-r101-panoptic",
}
MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8, "MODEL.DETR.NUM_OBJECT_QUERIES", 20),
    *("MODEL.DETR.FROZEN_WEIGHTS", "nowhere.pth", "MODEL.DETR.NUM_CLASSES", 133),
    # The original merges before it removes.
    *("MODEL.DETR.PANOPTIC.ENABLED", True, "MODEL.DETR.PANOPTIC.MERGE_AFTER_REMOVAL", False),
)
SIZE = (72, 100)


@pytest.fixture
def load(repository):
    def make(name: str, **arguments):
        return torch.hub.load(str(repository), name, source="local", **arguments)

    return make


def test_entry_point(load):
    model, postprocessor = load("detr_resnet50", num_classes=3, return_postprocessor=True)
    assert isinstance(model, Detr)
    assert not model.training
    assert postprocessor is box_instances
    with torch.no_grad():
        instances = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]["instances"]
    assert len(instances) == 100
    assert model.detr.class_embed.out_features == 4


@pytest.mark.parametrize("name", BOX)
def test_pretrained(load, monkeypatch, make_cfg, make_original, tmp_path, name):
    """The published file's 92 rows are kept, since the original's num_classes is 91."""
    cfg = make_cfg()
    original = make_original(cfg, num_classes=91)
    torch.save({"model": original.state_dict()}, tmp_path / "published.pth")

    def get_config(requested: str, trained: bool) -> CfgNode:
        assert (requested, trained) == (BOX[name], True)
        cfg.MODEL.WEIGHTS = str(tmp_path / "published.pth")
        return cfg

    monkeypatch.setattr(model_zoo, "get_config", get_config)
    model = load(name, pretrained=True)
    assert torch.equal(model.detr.class_embed.weight, original.class_embed.weight)
    with pytest.raises(UserError, match=r"92 rows.*MODEL\.DETR\.NUM_CLASSES"):
        load(name, pretrained=True, num_classes=7)


@pytest.fixture
def published_panoptic(monkeypatch, make_cfg, make_original_segmentation, make_inputs, original_batch, tmp_path):
    """Save the original's panoptic model, of 250 classes, in place of the published file of any name."""
    cfg = make_cfg(*MASKS)
    original = make_original_segmentation(cfg, num_classes=250)
    head = original.detr.class_embed
    with torch.no_grad():
        # Queries of many classes, some of them confident.
        original.detr.query_embed.weight.normal_(0, 30)
        head.weight.normal_()
        head.bias -= original(original_batch(make_inputs([SIZE], [0]), cfg)[0])["pred_logits"][0].mean(dim=0)
        for x in head.parameters():
            x.mul_(100)
    torch.save({"model": original.state_dict()}, tmp_path / "published.pth")
    requested = []

    def get_config(name: str, trained: bool) -> CfgNode:
        requested.append((name, trained))
        cfg.MODEL.WEIGHTS = str(tmp_path / "published.pth") if trained else ""
        return cfg.clone()

    monkeypatch.setattr(model_zoo, "get_config", get_config)
    return original, cfg, requested


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_results_are_the_originals(load, published_panoptic, make_inputs, original_batch, name):
    """With the original's arguments, and the post-processor that its entry points return."""
    original, cfg, requested = published_panoptic
    model, postprocessor = load(name, pretrained=True, threshold=0.4, return_postprocessor=True)
    assert requested == [(PANOPTIC[name], True)]
    assert not model.training
    assert all(x.requires_grad for x in model.detr.transformer.parameters())
    (inputs,) = make_inputs([SIZE], [0])
    with torch.no_grad():
        outputs = original(original_batch([inputs], cfg)[0])
        expected = PostProcessPanoptic({i: i <= 90 for i in range(250)}, threshold=0.4)(outputs, [SIZE], [SIZE])[0]
        ids, segments = model([inputs])[0]["panoptic_seg"]
        layout = {"padded_size": SIZE, "image_size": SIZE, "output_size": SIZE}
        again = postprocessor(outputs["pred_logits"][0], outputs["pred_masks"][0], **layout)
    image = np.asarray(Image.open(io.BytesIO(expected["png_string"]))).astype(int) @ [1, 256, 65536]
    # Masks that have learned nothing are nearly equal, and rounding decides some pixels.
    assert (again[0].numpy() == image + 1).mean() > 0.999
    assert (ids.numpy() == image + 1).mean() > 0.98
    kinds = [(x["isthing"], x["category_id"]) for x in expected["segments_info"]]
    assert [(x["isthing"], x["category_id"]) for x in segments] == kinds
    assert {is_thing for is_thing, _ in kinds} == {True, False}


def test_panoptic_classes(load, published_panoptic):
    """COCO's contiguous classes on request; no download without ``pretrained``."""
    original, _, requested = published_panoptic
    model = load("detr_resnet50_panoptic", pretrained=True, num_classes=133)
    assert torch.equal(model.detr.class_embed.weight[132], original.detr.class_embed.weight[200])
    assert model.panoptic.is_thing == (True,) * 80 + (False,) * 53
    assert model.panoptic.score_threshold == 0.85
    with pytest.raises(UserError, match=r"251 rows.*MODEL\.DETR\.NUM_CLASSES"):
        load("detr_resnet50_panoptic", pretrained=True, num_classes=7)
    assert load("detr_resnet101_panoptic", num_classes=100).panoptic.is_thing == (True,) * 91 + (False,) * 9
    assert requested[-1] == ("detr-r101-panoptic", False)
