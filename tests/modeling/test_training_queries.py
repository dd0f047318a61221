"""Groups of object queries: what they compute is what plain models with their embeddings compute."""

import pytest
import torch
from torch.testing import assert_close

from detr_d2.utils.errors import UserError

SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = (
    *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
)
QUERY_MIXTURE = ("MODEL.DETR.SMCA.QUERY_MIXTURE", True, "MODEL.DETR.NUM_OBJECT_QUERIES", 8)
MASKS = ("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 64, "MODEL.DETR.NHEADS", 8)
DENOISING = ("MODEL.DETR.DENOISING.GROUPS", 2)
NO_DROPOUT = ("MODEL.DETR.DROPOUT", 0.0)


@pytest.mark.parametrize(
    "options",
    [(), SMCA, (*SMCA, *QUERY_MIXTURE), (*MULTI_SCALE, *QUERY_MIXTURE), ("MODEL.DETR.DEEP_SUPERVISION", False), MASKS],
    ids=["DETR", "SMCA", "query mixture", "multi-scale, query mixture", "last layer", "masks"],
)
def test_losses_are_the_average_of_the_groups(make_model, make_inputs, options):
    """Each group alone, as the queries of a plain model, gives its own losses; masks are those of the first."""
    model = make_model("MODEL.DETR.QUERY_GROUPS", 3, *NO_DROPOUT, *options).train()
    plain = make_model(*NO_DROPOUT, *options).train()
    inputs = make_inputs([(64, 64), (64, 96)], [2, 0], masks="MODEL.MASK_ON" in options)
    state = {name: x for name, x in model.state_dict().items() if name in plain.state_dict()}
    groups = [state["detr.query_embed.weight"], *model.training_queries.group_embed.weight.detach().chunk(2)]
    expected = []
    for embedding in groups:
        plain.load_state_dict({**state, "detr.query_embed.weight": embedding})
        expected.append(plain(inputs))
    losses = model(inputs)
    assert losses.keys() == expected[0].keys()
    for name, loss in losses.items():
        of_groups = torch.stack([x[name] for x in expected])
        assert_close(loss, of_groups[0] if name in ("loss_mask", "loss_dice") else of_groups.mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [(), SMCA, MULTI_SCALE], ids=["DETR", "SMCA", "multi-scale SMCA"])
def test_denoising_changes_no_other_loss(make_model, make_inputs, options):
    model = make_model(*DENOISING, *NO_DROPOUT, *options).train()
    plain = make_model(*NO_DROPOUT, *options).train()
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if name in plain.state_dict()})
    inputs = make_inputs([(64, 64), (64, 96)], [2, 0])
    losses, expected = model(inputs), plain(inputs)
    assert {x for x in losses if "_dn_" not in x} == expected.keys()
    assert {x.replace("_dn_", "_") for x in losses if "_dn_" in x} == expected.keys()
    for name, loss in expected.items():
        assert_close(losses[name], loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("option", [("MODEL.DETR.QUERY_GROUPS", 2), DENOISING])
def test_frozen_boxes_refuse_training_queries(make_model, option):
    with pytest.raises(UserError, match=r"which MODEL\.DETR\.FROZEN_WEIGHTS keeps"):
        make_model(*MASKS, *option, "MODEL.DETR.FROZEN_WEIGHTS", "box.pth")


def test_plain_models_have_none(make_model):
    assert make_model().training_queries is None
