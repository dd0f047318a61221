"""MODEL.DETR.FROZEN_WEIGHTS: a box model that does not change while a mask head is trained."""

import pytest
import torch
from detectron2.modeling import build_model

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.engine import build_optimizer
from detr_d2.utils.errors import UserError

MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1),
)


def own(tmp_path, model):
    DetrCheckpointer(model, str(tmp_path)).save("own")
    return tmp_path / "own.pth"


def original_box(tmp_path, original):
    path = tmp_path / "box.pth"
    torch.save({"model": original.detr.state_dict()}, path)
    return path


def original_segmentation(tmp_path, original):
    path = tmp_path / "segmentation.pth"
    torch.save({"model": original.state_dict()}, path)
    return path


@pytest.fixture
def save_box_model(make_cfg, make_original_segmentation, tmp_path):
    """Return a function that saves a box model in one of three ways, and returns path and weights."""

    def save(write, seed=1, **kwargs):
        original = make_original_segmentation(make_cfg(*MASKS), seed=seed, **kwargs)
        cfg = make_cfg(*MASKS, "MODEL.DETR.NUM_CLASSES", original.detr.class_embed.out_features - 1)
        model = build_model(cfg)
        model.load_state_dict(original.state_dict())
        path = write(tmp_path, model if write is own else original)
        return str(path), box_tensors(model)

    return save


def box_tensors(model):
    state = {name: x.clone() for name, x in model.state_dict().items()}
    return {name: x for name, x in state.items() if not name.startswith(("detr.bbox_attention", "detr.mask_head"))}


def build(make_cfg, frozen, *options):
    """Return a config with frozen weights, its model, and its checkpointer as the trainer builds it."""
    cfg = make_cfg(*MASKS, "MODEL.DETR.FROZEN_WEIGHTS", frozen, *options)
    torch.manual_seed(5)
    model = build_model(cfg)
    folder = cfg.OUTPUT_DIR if options else ""
    return cfg, model, DetrCheckpointer(model, folder, frozen_weights=cfg.MODEL.DETR.FROZEN_WEIGHTS)


def is_equal(ours, expected):
    return [name for name, x in expected.items() if not torch.equal(x, ours[name])] == []


@pytest.mark.parametrize("write", [own, original_box, original_segmentation], ids=lambda x: x.__name__)
def test_unchanged_after_five_steps(make_cfg, make_inputs, save_box_model, write):
    """With every kind of file, and with dropout and weight decay."""
    path, expected = save_box_model(write)
    solver = ("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.BASE_LR", 0.01, "MODEL.DETR.DROPOUT", 0.3)
    cfg, model, checkpointer = build(make_cfg, path, *solver)
    checkpointer.resume_or_load("", resume=False)
    assert is_equal(model.state_dict(), expected)
    head = {name: x.clone() for name, x in model.state_dict().items() if name not in expected}
    optimizer = build_optimizer(cfg, model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if name in head}

    inputs = make_inputs([(64, 64), (48, 80)], [2, 1], masks=True)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()
    assert is_equal(model.state_dict(), expected)
    assert not any(torch.equal(x, model.state_dict()[name]) for name, x in head.items())


def test_frozen_weights_are_loaded_after_the_others(make_cfg, make_model, save_box_model, tmp_path):
    """The mask head is that of MODEL.WEIGHTS, the box model that of MODEL.DETR.FROZEN_WEIGHTS."""
    path, expected = save_box_model(original_box)
    whole = make_model(*MASKS, seed=3)
    DetrCheckpointer(whole, str(tmp_path)).save("whole")
    _, model, checkpointer = build(make_cfg, path)
    checkpointer.resume_or_load(str(tmp_path / "whole.pth"), resume=False)
    assert is_equal(model.state_dict(), expected)
    assert is_equal(model.state_dict(), {n: x for n, x in whole.state_dict().items() if n not in expected})


def test_resuming_keeps_the_runs_own_weights(make_cfg, save_box_model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    path, expected = save_box_model(original_box)
    _, model, checkpointer = build(make_cfg, path, "OUTPUT_DIR", str(run))
    checkpointer.resume_or_load("", resume=True)
    with torch.no_grad():
        model.detr.mask_head.out_lay.bias.fill_(7.0)
    checkpointer.save("model_0000004")

    _, model, checkpointer = build(make_cfg, path, "OUTPUT_DIR", str(run))
    checkpointer.resume_or_load("", resume=True)
    assert is_equal(model.state_dict(), expected)
    assert model.detr.mask_head.out_lay.bias.item() == 7.0

    other, _ = save_box_model(original_segmentation, seed=2)
    _, _, checkpointer = build(make_cfg, other, "OUTPUT_DIR", str(run))
    with pytest.raises(UserError, match=r"was trained over another box model .*FROZEN_WEIGHTS .*segmentation.pth"):
        checkpointer.resume_or_load("", resume=True)


def test_a_box_model_of_other_classes(make_cfg, save_box_model):
    """A class head that is not trained can't be initialized again."""
    path, _ = save_box_model(original_box, num_classes=8)
    _, _, checkpointer = build(make_cfg, path)
    with pytest.raises(UserError, match=r"FROZEN_WEIGHTS .*box.pth holds a class head of 9 rows"):
        checkpointer.resume_or_load("", resume=False)


def test_no_such_file(make_cfg):
    _, _, checkpointer = build(make_cfg, "nowhere.pth")
    with pytest.raises(UserError, match=r"nowhere.pth does not exist: check the path .*FROZEN_WEIGHTS"):
        checkpointer.resume_or_load("", resume=False)
