"""Detectron2's own export, as its ``tools/deploy/export_model.py`` does it."""

import torch
from detectron2.export import TracingAdapter
from torch.testing import assert_close


def test_traced_at_the_size_of_the_example(make_model, make_inputs):
    keys = ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1, "MODEL.MASK_ON", True)
    model = make_model(*keys)
    image, other = (x["image"].float() for x in make_inputs([(64, 80), (64, 80)], [0, 0]))
    adapter = TracingAdapter(model, [{"image": image}]).eval()
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    with torch.no_grad():
        expected = model([{"image": other}])[0]["instances"]
    found = adapter.outputs_schema(traced(other))[0]["instances"]
    assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    assert torch.equal(found.pred_masks, expected.pred_masks)
