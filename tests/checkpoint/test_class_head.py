import json

import pytest
import torch

from detr_d2.checkpoint.class_head import COCO_CLASSES, coco_head_by_ids, coco_names


@pytest.fixture
def head() -> dict[str, torch.Tensor]:
    """Return a head of 92 rows, each filled with its index."""
    rows = torch.arange(92.0)
    return {"detr.class_embed.weight": rows[:, None].expand(92, 256), "detr.class_embed.bias": rows}


def test_rows_are_coco_ids_in_contiguous_order_then_no_object(head, real_data):
    """A head of 92 rows becomes one of 81. The ids are those of COCO's own annotation file."""
    categories = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())["categories"]
    ids = sorted(x["id"] for x in categories)
    assert len(ids) == 80
    converted = coco_head_by_ids(92).to_contiguous({**head, "detr.query_embed.weight": torch.zeros(100, 256)})
    assert converted["detr.class_embed.weight"].shape == (81, 256)
    assert converted["detr.class_embed.weight"][:, 7].tolist() == [*ids, 91]
    assert converted["detr.class_embed.bias"].tolist() == [*ids, 91]
    assert converted["detr.query_embed.weight"].shape == (100, 256)
    names = {x["id"]: x["name"] for x in categories}
    assert [x["name"] for x in COCO_CLASSES] == [names[i] for i in ids]


def test_panoptic_heads_have_names():
    """The ids are those of COCO's panoptic annotations: banner is 92, rug-merged, the last, 200."""
    names = coco_names(251)
    assert len(names) == 250
    assert (names[1], names[92], names[200], names[201]) == ("person", "banner", "rug-merged", None)
    assert coco_names(6) is None
