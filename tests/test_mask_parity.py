"""Masks against the original code (python-detr), on weights carried over by our conversion."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detr.models.detr import PostProcess
from detr.models.segmentation import PostProcessSegm
from detr.util.misc import NestedTensor
from torch.testing import assert_close

MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.DROPOUT", 0.0),
    *("MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8, "MODEL.DETR.MASK.CHUNK", 3),
)
R50 = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
VARIANTS = {
    "r18": (),
    "r50": R50,
    "dc5": (*R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "published sizes": (*R50, "MODEL.DETR.HIDDEN_DIM", 256, "MODEL.DETR.NUM_OBJECT_QUERIES", 20),
    "pre-norm": ("MODEL.DETR.PRE_NORM", True),
}
SIZES = {
    "one": [(96, 128)],
    "odd levels": [(101, 135)],
    "tiny": [(33, 20)],
    "padded": [(160, 97), (75, 200), (33, 64)],
}


CASES = [*((name, "padded") for name in VARIANTS), *(("r18", name) for name in SIZES if name != "padded")]


def make_pair(make_cfg, make_original_segmentation, *options):
    """Return the config, our model and the original with the same weights."""
    cfg = make_cfg(*MASKS, "MODEL.DETR.BATCH_INVARIANT", False, *options)
    original = make_original_segmentation(cfg)
    model = build_model(cfg)
    model.load_state_dict(original.state_dict())
    return cfg, model.eval(), original


@pytest.mark.parametrize(("variant", "sizes"), CASES)
def test_mask_logits(make_cfg, make_original_segmentation, make_inputs, original_batch, variant, sizes):
    """Compare the masks of all queries, and of some of each image in any order, of the last image of none."""
    cfg, model, original = make_pair(make_cfg, make_original_segmentation, *VARIANTS[variant])
    sizes = SIZES[sizes]
    inputs = make_inputs(sizes, [0] * len(sizes))
    with torch.no_grad():
        mask_inputs = model.detr(model.preprocess_image(inputs), all_layers=False).mask_inputs
        all_queries = torch.arange(model.detr.num_queries)
        logits = torch.stack(model.detr.masks(mask_inputs, [all_queries] * len(sizes)))
        expected = original(original_batch(inputs, cfg)[0])["pred_masks"]
        assert_close(logits, expected, atol=1e-4, rtol=0)
        assert logits.std() > 0.1
        chosen = [torch.tensor([5, 0, 3]), torch.tensor([1, 6]), all_queries[:0]][: len(sizes)]
        some = model.detr.masks(mask_inputs, chosen)
        for found, every, queries in zip(some, logits, chosen, strict=True):
            assert_close(found, every[queries], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[(65, 71)], [(65, 40), (33, 70)]], ids=["one", "padded"])
def test_gradients(make_cfg, make_original_segmentation, make_inputs, original_batch, sizes):
    """Compare those of a random linear function of some masks, for every parameter, in float64."""
    cfg, model, original = make_pair(make_cfg, make_original_segmentation, "MODEL.DETR.ENC_LAYERS", 1)
    inputs = make_inputs(sizes, [0] * len(sizes))
    batch = model.double().preprocess_image(inputs)
    mask_inputs = model.detr(batch, all_layers=False).mask_inputs
    chosen = [torch.tensor([3, 0, 6]), torch.tensor([2, 3])][: len(sizes)]
    logits = torch.cat(model.detr.masks(mask_inputs, chosen))
    weight = torch.randn_like(logits)
    (weight * logits).sum().backward()

    samples, _ = original_batch(inputs, cfg)
    all_masks = original.double()(NestedTensor(batch.tensor, samples.mask))["pred_masks"]
    (weight * torch.cat([x[queries] for x, queries in zip(all_masks, chosen, strict=True)])).sum().backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in original.named_parameters()}
    expected = build_model(cfg).double()
    expected.load_state_dict({**original.state_dict(), **gradients})
    expected = dict(expected.named_parameters())
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    assert {"detr.mask_head.lay1.weight", "detr.bbox_attention.k_linear.weight"} <= {name for name, _ in trained}
    for name, gradient in trained:
        distance = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
        assert distance < 1e-5, f"{name}: {distance}"


@pytest.mark.parametrize(
    ("sizes", "threshold"), [*((name, 0.5) for name in SIZES), ("odd levels", 0.3), ("padded", 0.3)]
)
def test_masks_of_the_result(make_cfg, make_original_segmentation, make_inputs, original_batch, sizes, threshold):
    """Compare with PostProcessSegm, pixel for pixel, also in padded batches."""
    options = ("MODEL.DETR.MASK.THRESHOLD", threshold)
    cfg, model, original = make_pair(make_cfg, make_original_segmentation, *options)
    sizes = SIZES[sizes]
    inputs = make_inputs(sizes, [0] * len(sizes))
    output_sizes = [(240, 321), (300, 100), (7, 500)][: len(sizes)]
    for x, (height, width) in zip(inputs, output_sizes, strict=True):
        x["height"], x["width"] = height, width
    with torch.no_grad():
        samples = original_batch(inputs, cfg)[0]
        # About half of the pixels are to belong to a mask, and none to lie at the threshold.
        shift = original(samples)["pred_masks"].median() + 0.01 - math.log(threshold / (1 - threshold))
        for head in (model.detr.mask_head, original.mask_head):
            head.out_lay.bias -= shift
        results = model(inputs)
        outputs = original(samples)
        expected_results = PostProcess()(outputs, torch.tensor(output_sizes))
        expected_results = PostProcessSegm(threshold)(
            expected_results, outputs, torch.tensor(output_sizes), torch.tensor(sizes)
        )
    share = []
    for result, expected, size in zip(results, expected_results, output_sizes, strict=True):
        masks = result["instances"].pred_masks
        assert masks.dtype == torch.bool
        assert masks.shape == (7, *size)
        # Where a logit is almost at the threshold, rounding decides.
        assert (masks != expected["masks"][:, 0].bool()).float().mean() < 1e-4
        share.append(masks.float().mean())
    assert 0.02 < torch.stack(share).mean() < 0.98
