"""Checkpoints of models with a mask head: panoptic and segmentation files convert and load strictly."""

import logging

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from detr_d2.checkpoint import DetrCheckpointer, read_checkpoint
from detr_d2.checkpoint.conversion import convert_checkpoint
from detr_d2.utils.errors import UserError

SIZES = ("MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8)
MASKS = ("MODEL.MASK_ON", True, *SIZES)


@pytest.fixture
def panoptic_file(segmentation_weights, tmp_path):
    """Save a file like the published panoptic ones: 251 rows."""
    path = tmp_path / "panoptic.pth"
    torch.save({"model": segmentation_weights(num_classes=250)}, path)
    return str(path)


def test_a_panoptic_file_converts_and_loads(panoptic_file, make_model, tmp_path):
    """Things, then stuff, in the order of COCO's ids, then no-object; and back again."""
    output, back = str(tmp_path / "out.pth"), str(tmp_path / "back.pth")
    summary = str(convert_checkpoint(panoptic_file, output))
    assert "251 -> 134" in summary
    assert "left out: nothing" in summary
    for setting in ("MODEL.MASK_ON True", "MODEL.DETR.NUM_CLASSES 133"):
        assert setting in summary
    converted = read_checkpoint(output)
    make_model(*MASKS, "MODEL.DETR.NUM_CLASSES", 133).load_state_dict(converted["model"], strict=True)
    original = read_checkpoint(panoptic_file)["model"]
    ids = {x["name"]: x["id"] for x in COCO_CATEGORIES}
    things = [x["name"] for x in COCO_CATEGORIES if x["isthing"]]
    assert converted["class_names"][:80] == things
    rows = [*(ids[name] for name in converted["class_names"]), 250]
    assert torch.equal(converted["model"]["detr.class_embed.weight"], original["detr.class_embed.weight"][rows])

    convert_checkpoint(output, back, to="original", coco_ids=True)
    exported = read_checkpoint(back)["model"]
    assert exported.keys() == original.keys()
    for name, x in exported.items():
        if "class_embed" not in name:
            assert torch.equal(x, original[name]), name
    assert torch.equal(exported["detr.class_embed.bias"][rows], original["detr.class_embed.bias"][rows])


@pytest.mark.parametrize("num_classes", [133, 250])
def test_a_panoptic_file_loads_directly(panoptic_file, make_model, num_classes):
    model = make_model(*MASKS, "MODEL.DETR.NUM_CLASSES", num_classes)
    DetrCheckpointer(model, allow_new_head=False).load(panoptic_file)
    original = read_checkpoint(panoptic_file)["model"]
    assert torch.equal(model.state_dict()["detr.mask_head.lay1.weight"], original["mask_head.lay1.weight"])
    # Stuff row 200 is rug-merged, the last of COCO's.
    row = 132 if num_classes == 133 else 200
    assert torch.equal(model.detr.class_embed.weight[row], original["detr.class_embed.weight"][200])


def test_a_box_model_loads_the_box_model_in_the_file(panoptic_file, make_model, caplog):
    model = make_model(*SIZES, "MODEL.DETR.NUM_CLASSES", 133)
    with caplog.at_level(logging.INFO):
        DetrCheckpointer(model, allow_new_head=False).load(panoptic_file)
    assert "mask head is left out" in caplog.text
    model.load_state_dict(read_checkpoint(panoptic_file)["model"], strict=True)


def test_a_new_mask_head_is_for_training_only(make_model, tmp_path, caplog):
    box, segm = make_model(*SIZES), make_model(*MASKS, seed=1)
    torch.save({"model": box.state_dict()}, tmp_path / "box.pth")
    before = segm.detr.mask_head.lay1.weight.clone()
    with caplog.at_level(logging.INFO):
        DetrCheckpointer(segm).load(str(tmp_path / "box.pth"))
    assert "mask head stays at its initialization" in caplog.text
    assert torch.equal(segm.detr.mask_head.lay1.weight, before)
    assert torch.equal(segm.detr.query_embed.weight, box.detr.query_embed.weight)
    with pytest.raises(UserError, match=r"no mask head.*MODEL\.MASK_ON"):
        DetrCheckpointer(segm, allow_new_head=False).load(str(tmp_path / "box.pth"))


def test_a_file_of_the_old_wrapper_loads(make_model, tmp_path):
    """Its box model is one level deeper than ours, its mask head where ours is."""
    model = make_model(*MASKS)
    ours = model.state_dict()
    of_masks = {name: x for name, x in ours.items() if "mask_head" in name or "bbox_attention" in name}
    of_boxes = {name.replace("detr.", "detr.detr.", 1): x for name, x in ours.items() if name not in of_masks}
    torch.save({"model": {**of_masks, **of_boxes, "criterion.empty_weight": torch.ones(6)}}, tmp_path / "old.pth")
    other = make_model(*MASKS, seed=1)
    DetrCheckpointer(other, allow_new_head=False).load(str(tmp_path / "old.pth"))
    for name, x in other.state_dict().items():
        assert torch.equal(x, ours[name]), name
