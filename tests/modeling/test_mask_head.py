import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F
from torch.testing import assert_close

from detr_d2.modeling.mask_head import AttentionMaps, MaskHead, UpsamplingConv
from detr_d2.utils.errors import UserError

MASKS = ("MODEL.MASK_ON", True)


@pytest.mark.parametrize("height", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_upsampling_and_convolution_together(height, width):
    """From half the size, rounded up; compare also gradients, in float64."""
    x = torch.randn(2, 3, (height + 1) // 2, (width + 1) // 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(F.interpolate(x, size=(height, width), mode="nearest"), weight, padding=1)
    result = UpsamplingConv(weight, (height, width))(x)
    assert_close(result, expected)
    direction = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, (x, weight), direction) for y in (result, expected))
    for found, gradient in zip(*gradients, strict=True):
        assert_close(found, gradient)


@pytest.mark.parametrize("size", [(5, 7), (14, 10), (15, 7), (4, 9)])
def test_levels_of_other_proportions(size):
    """One size as in a ViT or a dilated stage, three times the size, and smaller."""
    x, weight = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, padding=1)
    assert_close(UpsamplingConv(weight, size)(x), expected)


def test_attention_sums_to_one_outside_the_padding():
    """Over heads and positions together."""
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, :, 2:] = True
    maps = AttentionMaps(16, 4)(torch.randn(2, 5, 16), torch.randn(2, 16, 3, 4), mask)
    assert maps.shape == (2, 5, 4, 3, 4)
    assert_close(maps.flatten(2).sum(-1), torch.ones(2, 5))
    assert maps[1, ..., 2:].abs().max() == 0


def test_the_gain_of_the_maps():
    """It multiplies the initial weights that read the maps, so that masks differ by query from the start."""
    heads = []
    for gain in (1.0, 100.0):
        torch.manual_seed(0)
        heads.append(MaskHead(32, 4, (8, 8, 8), gain))
    initial, scaled = (head.state_dict() for head in heads)
    initial["lay1.weight"][:, 32:] *= 100
    for name, weight in initial.items():
        assert_close(scaled[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 2, 5, 100, None])
def test_chunks_change_nothing(chunk):
    """Every query is normalized alone, and reads the features of its own image."""
    torch.manual_seed(0)
    head = MaskHead(32, 4, (8, 8, 8)).eval()
    source, maps = torch.randn(3, 32, 2, 3), torch.rand(7, 4, 2, 3)
    levels = [torch.randn(3, 8, 2 * x, 3 * x) for x in (2, 4, 8)]
    images = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    logits = head(source, maps, levels, images, chunk)
    for i, image in enumerate(images.tolist()):
        one = slice(image, image + 1)
        alone = head(source[one], maps[i : i + 1], [x[one] for x in levels], torch.zeros(1, dtype=torch.long))
        assert_close(logits[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        (),
        *(
            ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE", f"type{i}")
            for i in (1, 2, 3, 4)
        ),
        ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer"),
        ("MODEL.DETR.CLASS_LOSS", "focal"),
    ],
    ids=["detr", "smca type1", "smca type2", "smca type3", "smca type4", "multi-scale smca", "focal"],
)
def test_every_variant_has_masks_and_trains_them(make_cfg, make_inputs, options):
    """Every part of the mask head has a gradient, and masks have the size of the result."""
    torch.manual_seed(0)
    model = build_model(make_cfg(*MASKS, *options))
    batch = model.preprocess_image(make_inputs([(64, 70), (40, 64)], [0, 0]))
    mask_inputs = model.detr(batch, all_layers=True).mask_inputs
    logits = model.detr.masks(mask_inputs, [torch.tensor([6]), torch.tensor([0, 2])])
    assert [x.shape for x in logits] == [(1, 16, 18), (2, 16, 18)]
    torch.cat(logits).square().mean().backward()
    for name, parameter in model.named_parameters():
        # A number that is added to all keys makes no difference to the softmax.
        if ("mask_head" in name or "bbox_attention" in name) and not name.endswith("k_linear.bias"):
            assert parameter.grad.abs().max() > 0, name
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    inputs = make_inputs([(64, 70), (40, 64)], [0, 0])
    inputs[0] |= {"height": 33, "width": 50}
    with torch.no_grad():
        results = model.eval()(inputs)
    for result, size in zip(results, ((33, 50), (40, 64)), strict=True):
        assert result["instances"].pred_masks.shape == (7, *size)
        assert result["instances"].pred_masks.dtype == torch.bool


def test_masks_of_kept_detections_only(make_model, make_inputs):
    """Also where no detection is kept. The others have the masks that they have without a threshold."""
    inputs = make_inputs([(64, 70)], [0])
    model = make_model(*MASKS)
    counts = []
    model.detr.mask_head.register_forward_hook(lambda module, inputs, logits: counts.append(len(logits)))
    with torch.no_grad():
        whole = model(inputs)[0]["instances"]
        model.score_threshold = float(whole.scores.median())
        kept = model(inputs)[0]["instances"]
        model.score_threshold = 1.0
        none = model(inputs)[0]["instances"]
    assert counts == [7, 4]
    assert len(kept) == 4
    assert torch.equal(kept.pred_masks, whole[whole.scores >= whole.scores.median()].pred_masks)
    assert none.pred_masks.shape == (0, 64, 70)
    assert none.pred_masks.dtype == torch.bool


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*MASKS, "MODEL.RESNETS.OUT_FEATURES", ["res5"]), r"MODEL\.RESNETS\.OUT_FEATURES"),
        ((*MASKS, "MODEL.DETR.HIDDEN_DIM", 8), r"MODEL\.DETR\.HIDDEN_DIM is 8"),
    ],
)
def test_unsuitable_models_are_refused(make_cfg, options, message):
    with pytest.raises(UserError, match=message):
        build_model(make_cfg(*options))


@pytest.mark.parametrize("hidden_dim", [16, 64, 96, 256])
def test_widths(hidden_dim):
    head = MaskHead(hidden_dim, 8, (8, 8, 8))
    levels = [torch.randn(1, 8, 2 * x, 2 * x) for x in (2, 4, 8)]
    maps = torch.rand(2, 8, 2, 2)
    assert head(torch.randn(1, hidden_dim, 2, 2), maps, levels, torch.tensor([0, 0])).shape == (2, 16, 16)
