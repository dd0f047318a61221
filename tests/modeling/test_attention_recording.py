"""Recorded attention against the original's modules, and that of SMCA against an explicit softmax."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.testing import assert_close

from detr_d2.modeling import record_attention
from detr_d2.utils.errors import UserError

SIZES = {"one": [(96, 128)], "padded": [(160, 97), (75, 200), (33, 64)]}
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE")


def record_original(original, samples) -> tuple[list, list]:
    """Return the weights of every head of the original's encoder, and of its decoder's cross attention."""
    transformer = original.transformer
    parts = [x.self_attn for x in transformer.encoder.layers], [x.multihead_attn for x in transformer.decoder.layers]
    recorded = [], []
    handles = []
    for modules, weights in zip(parts, recorded, strict=True):
        for module in modules:
            all_heads = lambda module, args, kwargs: (args, {**kwargs, "average_attn_weights": False})  # noqa: E731
            keep = lambda module, args, output, weights=weights: weights.append(output[1])  # noqa: E731
            handles.append(module.register_forward_pre_hook(all_heads, with_kwargs=True))
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        original(samples)
    for handle in handles:
        handle.remove()
    return recorded


@pytest.mark.parametrize("options", [(), ("MODEL.DETR.PRE_NORM", True)], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_weights_are_the_originals(make_cfg, make_original, make_inputs, original_batch, options, sizes):
    """In every layer and head of encoder and decoder, also for padded features."""
    cfg = make_cfg("MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.BATCH_INVARIANT", False, *options)
    original = make_original(cfg)
    model = build_model(cfg).eval()
    model.load_state_dict(original.state_dict())
    inputs = make_inputs(sizes, [0] * len(sizes))
    with record_attention(model, encoder_points=None) as record, torch.no_grad():
        model(inputs)
    samples, _ = original_batch(inputs, cfg)
    encoder, decoder = record_original(original, samples)
    assert (len(record.encoder), len(record.decoder)) == (2, 3) == (len(encoder), len(decoder))
    for found, expected in zip(record.encoder + record.decoder, encoder + decoder, strict=True):
        assert found.dtype == torch.float32
        assert_close(found, expected, atol=1e-5, rtol=0)
    assert record.size[0] * record.size[1] == encoder[0].shape[-1]
    assert (record.padding_mask is None) == (len(sizes) == 1)
    if len(sizes) > 1:
        padded = record.padding_mask.flatten(1)[:, None, None]
        assert (record.decoder[-1].masked_select(padded) == 0).all()


@pytest.mark.parametrize("kind", ["type1", "type2", "type3", "type4"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_spatially_modulated_weights(make_model, make_inputs, kind, sizes):
    """Compare with the explicit softmax of equation 6 of arXiv 2101.07448."""
    model = make_model(*SMCA, kind)
    expected = []

    def compute(module, inputs, output):
        query, key, _, padding_mask, bias = inputs
        width = query.shape[-1] // module.num_heads
        weight, offset = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
        q, k = ((x @ weight[i].T + offset[i]).unflatten(-1, (-1, width)) for i, x in enumerate((query, key)))
        logits = torch.einsum("bnhc,bshc->bhns", q, k) / width**0.5 + bias.explicit()
        if padding_mask is not None:
            logits[padding_mask[:, None, None].expand_as(logits)] = -torch.inf
        expected.append(logits.softmax(-1))

    for layer in model.detr.transformer.decoder.layers:
        layer.multihead_attn.register_forward_hook(compute)
    with record_attention(model) as record, torch.no_grad():
        model(make_inputs(sizes, [0] * len(sizes)))
    assert len(record.decoder) == 3
    for found, weights in zip(record.decoder, expected, strict=True):
        assert_close(found, weights, atol=1e-5, rtol=0)
    assert record.encoder == []


def test_chosen_points_are_rows_of_all(make_model, make_inputs):
    """Feature (row 1, column 2) of 32 pixels lies at (0.5, 0.5) of the larger image, whose map is 3 x 4."""
    model, inputs = make_model(), make_inputs([(96, 128), (64, 64)], [0, 0])
    points = [(0.5, 0.5), (0, 0), (1, 1)]
    with torch.no_grad():
        with record_attention(model, None) as whole:
            model(inputs)
        with record_attention(model, points) as chosen:
            model(inputs)
    assert whole.size == (3, 4)
    assert whole.features_at(points).tolist() == [[6, 0, 11], [5, 0, 5]]
    for layer in range(2):
        assert chosen.encoder[layer].shape == (2, 4, 3, 12)
        assert_close(chosen.encoder[layer][0], whole.encoder[layer][0][:, [6, 0, 11]], atol=1e-6, rtol=0)
        assert_close(chosen.encoder[layer][1], whole.encoder[layer][1][:, [5, 0, 5]], atol=1e-6, rtol=0)
    for index in range(2):
        expected = whole.self_attention((1, 1), index)
        assert expected.shape == (4, 3, 4)
        assert_close(chosen.self_attention((1, 1), index), expected, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="was not recorded"):
        chosen.self_attention((0.3, 0.3))


def test_recording_changes_neither_results_nor_the_model(make_model, make_inputs):
    model = make_model()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    first, second = make_inputs([(96, 128)], [0]), make_inputs([(64, 160)], [0])
    with torch.no_grad():
        before = model(second)[0]["instances"]
        with record_attention(model, None) as record:
            model(first)
            during = model(second)[0]["instances"]
        model(first)
    assert torch.equal(before.pred_boxes.tensor, during.pred_boxes.tensor)
    assert torch.equal(before.scores, during.scores)
    # The record holds the last pass within the block only.
    assert (record.size, record.stride, record.image_sizes) == ((2, 5), 32, [(64, 160)])
    assert [x.shape for x in record.decoder] == [(1, 4, 7, 10)] * 3
    assert record.cross_attention(layer=0).shape == (4, 7, 2, 5)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    with pytest.raises(UserError, match="no layer 3 in the decoder: 3"):
        record.cross_attention(layer=3)
