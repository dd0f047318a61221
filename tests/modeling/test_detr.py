import torch
from detectron2.structures import ImageList


def test_precisions_under_autocast(make_model):
    """What costs time is computed in bfloat16; classes and boxes are not."""
    model = make_model()
    precisions = {}
    for name in ("backbone.0.backbone.res5.0.conv1", "input_proj", "transformer.encoder.layers.0.linear1"):
        module = model.detr.get_submodule(name)
        module.register_forward_hook(lambda _, inputs, output, name=name: precisions.update({name: output.dtype}))
    images = ImageList.from_tensors([torch.randn(3, 64, 96)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        predictions = model.detr(images, all_layers=False)
    assert set(precisions.values()) == {torch.bfloat16}
    assert len(precisions) == 3
    assert predictions.logits.dtype == predictions.boxes.dtype == torch.float32
    # bfloat16 has no more than 8 bits: boxes of it would be the same in it.
    assert not torch.equal(predictions.boxes, predictions.boxes.bfloat16().float())
