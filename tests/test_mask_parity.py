"""Tests of masks against the original code (python-detr), with weights from our conversion."""

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


def all_pairs(features):
    count, queries = features.hidden.shape[:2]
    return torch.arange(count).repeat_interleave(queries), torch.arange(queries).repeat(count)


@pytest.mark.parametrize(("variant", "sizes"), CASES)
def test_mask_logits(make_cfg, make_original_segmentation, make_inputs, original_batch, variant, sizes):
    """Of all queries, and of some chosen ones in any order."""
    cfg, model, original = make_pair(make_cfg, make_original_segmentation, *VARIANTS[variant])
    sizes = SIZES[sizes]
    inputs = make_inputs(sizes, [0] * len(sizes))
    with torch.no_grad():
        features = model.detr(model.preprocess_image(inputs), all_layers=False).mask_features
        images, queries = all_pairs(features)
        logits = model.detr.mask_logits(features, images, queries)
        expected = original(original_batch(inputs, cfg)[0])["pred_masks"]
        assert_close(logits, expected.flatten(0, 1), atol=1e-4, rtol=0)
        assert logits.std() > 0.1
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:5]
        some = model.detr.mask_logits(features, images[chosen], queries[chosen])
        assert_close(some, logits[chosen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[(65, 71)], [(65, 40), (33, 70)]], ids=["one", "padded"])
def test_gradients(make_cfg, make_original_segmentation, make_inputs, original_batch, sizes):
    """Of a random linear function of chosen masks, for every parameter, in float64."""
    cfg, model, original = make_pair(make_cfg, make_original_segmentation, "MODEL.DETR.ENC_LAYERS", 1)
    inputs = make_inputs(sizes, [0] * len(sizes))
    images = model.double().preprocess_image(inputs)
    features = model.detr(images, all_layers=False).mask_features
    chosen = (torch.arange(5) % len(sizes), torch.tensor([3, 0, 6, 2, 3]))
    logits = model.detr.mask_logits(features, *chosen)
    weight = torch.randn_like(logits)
    (weight * logits).sum().backward()

    samples, _ = original_batch(inputs, cfg)
    theirs = original.double()(NestedTensor(images.tensor, samples.mask))["pred_masks"]
    (weight * theirs[chosen]).sum().backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in original.named_parameters()}
    expected = build_model(cfg).double()
    expected.load_state_dict({**original.state_dict(), **gradients})
    expected = dict(expected.named_parameters())
    learned = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    assert {"detr.mask_head.lay1.weight", "detr.bbox_attention.k_linear.weight"} <= {name for name, _ in learned}
    for name, gradient in learned:
        distance = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
        assert distance < 1e-5, f"{name}: {distance}"


@pytest.mark.parametrize(
    ("sizes", "threshold"), [*((name, 0.5) for name in SIZES), ("odd levels", 0.3), ("padded", 0.3)]
)
def test_masks_of_the_result(make_cfg, make_original_segmentation, make_inputs, original_batch, sizes, threshold):
    """Masks are those of PostProcessSegm, pixel for pixel, also in padded batches."""
    options = ("MODEL.DETR.MASK.THRESHOLD", threshold)
    cfg, model, original = make_pair(make_cfg, make_original_segmentation, *options)
    sizes = SIZES[sizes]
    inputs = make_inputs(sizes, [0] * len(sizes))
    wanted = [(240, 321), (300, 100), (7, 500)][: len(sizes)]
    for x, (height, width) in zip(inputs, wanted, strict=True):
        x["height"], x["width"] = height, width
    with torch.no_grad():
        samples = original_batch(inputs, cfg)[0]
        # So that about half of the pixels belong to a mask, and none lies just at the threshold.
        shift = original(samples)["pred_masks"].median() + 0.01 - math.log(threshold / (1 - threshold))
        for head in (model.detr.mask_head, original.mask_head):
            head.out_lay.bias -= shift
        results = model(inputs)
        outputs = original(samples)
        theirs = PostProcess()(outputs, torch.tensor(wanted))
        theirs = PostProcessSegm(threshold)(theirs, outputs, torch.tensor(wanted), torch.tensor(sizes))
    share = []
    for result, expected, size in zip(results, theirs, wanted, strict=True):
        masks = result["instances"].pred_masks
        assert masks.dtype == torch.bool
        assert masks.shape == (7, *size)
        # Where a logit is all but at the threshold, the last digits decide.
        assert (masks != expected["masks"][:, 0].bool()).float().mean() < 1e-4
        share.append(masks.float().mean())
    assert 0.02 < torch.stack(share).mean() < 0.98
