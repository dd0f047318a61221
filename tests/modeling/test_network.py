import torch

from detr_d2.structures import PaddedBatch


def test_precisions_under_autocast(make_model):
    """The large layers compute in bfloat16; the heads of classes and boxes do not."""
    model = make_model()
    precisions = {}
    for name in ("backbone.0.backbone.res5.0.conv1", "input_proj", "transformer.encoder.layers.0.linear1"):
        module = model.detr.get_submodule(name)
        module.register_forward_hook(lambda _, inputs, features, name=name: precisions.update({name: features.dtype}))
    batch = PaddedBatch.from_images([torch.randn(3, 64, 96)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model.detr(batch, all_layers=False)
    assert set(precisions.values()) == {torch.bfloat16}
    assert len(precisions) == 3
    assert output.logits.dtype == output.boxes.dtype == torch.float32
    # Boxes computed in bfloat16 would not change when they are rounded to it.
    assert not torch.equal(output.boxes, output.boxes.bfloat16().float())
