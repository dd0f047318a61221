import pytest
import torch
from detectron2.config import CfgNode

from detr_d2 import Detr, UserError, model_zoo
from detr_d2.postprocess import box_instances

# The original's names, and the models that they stand for.
BOX = {
    "detr_resnet50": "detr-r50",
    "detr_resnet50_dc5": "detr-r50-dc5",
    "detr_resnet101": "detr-r101",
    "detr_resnet101_dc5": "detr-r101-dc5",
}


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

    def get_config(asked: str, trained: bool) -> CfgNode:
        assert (asked, trained) == (BOX[name], True)
        cfg.MODEL.WEIGHTS = str(tmp_path / "published.pth")
        return cfg

    monkeypatch.setattr(model_zoo, "get_config", get_config)
    model = load(name, pretrained=True)
    assert torch.equal(model.detr.class_embed.weight, original.class_embed.weight)
    with pytest.raises(UserError, match=r"92 rows.*MODEL\.DETR\.NUM_CLASSES"):
        load(name, pretrained=True, num_classes=7)


@pytest.mark.parametrize("name", ["detr_resnet50_panoptic", "detr_resnet50_dc5_panoptic", "detr_resnet101_panoptic"])
def test_panoptic_models_say_what_can_be_had(load, name):
    with pytest.raises(UserError, match=r"finds masks, which this version of detr_d2 does not.*detr://"):
        load(name, pretrained=True, threshold=0.8)
