import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from torch import nn
from torch.testing import assert_close

from detr_d2.engine.optimizer import build_optimizer, group_table
from detr_d2.utils.errors import UserError


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.backbone_like = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_two_groups(make_cfg):
    """'backbone' is the name of a module, not part of one."""
    model = Toy()
    optimizer = build_optimizer(make_cfg("SOLVER.BASE_LR", 1e-4), model)
    assert type(optimizer) is torch.optim.AdamW
    backbone, rest = optimizer.param_groups
    assert [id(p) for p in backbone["params"]] == [id(p) for p in model.backbone.parameters()]
    assert [id(p) for p in rest["params"]] == [id(p) for p in model.backbone_like.parameters()]
    assert backbone["lr"] == pytest.approx(1e-5)
    assert rest["lr"] == pytest.approx(1e-4)
    assert backbone["weight_decay"] == rest["weight_decay"] == 1e-4


def test_layer_decay(make_cfg):
    """Each block of a vision transformer learns slower than the one after it; the rest is not affected."""
    pytest.importorskip("timm")
    backbone = (
        "MODEL.BACKBONE.NAME",
        "build_timm_backbone",
        "MODEL.TIMM.NAME",
        "test_vit",
        "MODEL.BACKBONE.FREEZE_AT",
        0,
    )
    cfg = make_cfg(*backbone, "MODEL.TIMM.ARGS", {"dynamic_img_size": True}, "SOLVER.LAYER_DECAY", 0.5)
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rates[p] for name, p in model.named_parameters()}
    prefix = "detr.backbone.0.backbone.body.model."
    blocks = sorted({name.removeprefix(prefix).split(".")[1] for name in found if name.startswith(f"{prefix}blocks.")})
    assert len(blocks) > 2
    by_block = [found[f"{prefix}blocks.{i}.attn.qkv.weight"] for i in blocks]
    assert by_block == pytest.approx([by_block[-1] * 0.5 ** (len(blocks) - 1 - int(i)) for i in blocks])
    assert by_block[-1] <= cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER
    assert found[f"{prefix}patch_embed.proj.weight"] == pytest.approx(by_block[0] / 2)
    assert found["detr.class_embed.weight"] == cfg.SOLVER.BASE_LR
    assert len(rates) == sum(p.requires_grad for p in model.parameters())


def test_layer_decay_needs_a_transformer_of_timm(make_cfg):
    with pytest.raises(UserError, match=r"SOLVER\.LAYER_DECAY 0\.5 needs a transformer of timm"):
        build_optimizer(make_cfg("SOLVER.LAYER_DECAY", 0.5), Toy())


def test_table_names_the_groups(make_cfg):
    optimizer = build_optimizer(make_cfg(), Toy())
    table = group_table(optimizer)
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["backbone", "transformer"]
    assert "1e-05" in table


def test_full_model_clipping(make_cfg):
    """The norm of all gradients together is clipped, right before the step."""
    model = Toy()
    optimizer = build_optimizer(make_cfg("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1), model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.randn_like(p)
    before = torch.cat([p.grad.flatten() for p in parameters])
    optimizer.step()
    after = torch.cat([p.grad.flatten() for p in parameters])
    assert_close(after, before * 0.1 / before.norm(), rtol=1e-4, atol=1e-7)


def test_clipping_can_be_off_or_detectron2s(make_cfg):
    for clip_type, expected in (("value", 0.1), ("off", 5.0)):
        on = clip_type != "off"
        options = ("SOLVER.CLIP_GRADIENTS.ENABLED", on) + (("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type) if on else ())
        model = Toy()
        optimizer = build_optimizer(make_cfg("SOLVER.OPTIMIZER", "SGD", *options), model)
        for p in model.parameters():
            p.grad = torch.full_like(p, 5.0)
        optimizer.step()
        assert model.backbone.weight.grad.max() == pytest.approx(expected)


def test_works_in_detectron2s_trainer(make_cfg):
    """Detectron2 itself refuses 'full_model': it is not a GradientClipType."""

    class Trainer(DefaultTrainer):
        build_optimizer = staticmethod(build_optimizer)

    cfg = make_cfg()
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    optimizer = Trainer.build_optimizer(cfg, Toy())
    Trainer.build_lr_scheduler(cfg, optimizer)


@pytest.mark.parametrize("key", ["SOLVER.OPTIMIZER", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"])
def test_unknown_names(make_cfg, key):
    with pytest.raises(UserError, match=f"{key} is 'nonsense': choose one of"):
        build_optimizer(make_cfg(key, "nonsense"), Toy())
