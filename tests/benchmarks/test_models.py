"""Comparisons of small models: the implementations agree, and this means something."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks import inference, models
from benchmarks.comparison import compare, differences
from benchmarks.inference import Inference
from benchmarks.models import random_batch
from benchmarks.training import PARTS, Criterion, Training
from detr_d2 import UserError
from detr_d2.modeling import compilation
from detr_d2.modeling.compilation import can_compile_training

SMALL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DETR.HIDDEN_DIM", "128"),
    *("MODEL.DETR.ENC_LAYERS", "1", "MODEL.DETR.DEC_LAYERS", "2", "MODEL.DETR.DIM_FEEDFORWARD", "64"),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", "20"),
)
BOTH = ("python-detr", "ours")

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_random_batch():
    batch = random_batch([(40, 60), (30, 50)], num_classes=3, objects=5, masks=True)
    assert [tuple(x["image"].shape) for x in batch] == [(3, 40, 60), (3, 30, 50)]
    assert [(x["height"], x["width"]) for x in batch] == [(24, 36), (18, 30)]
    for x in batch:
        objects = x["instances"]
        x0, y0, x1, y1 = objects.gt_boxes.tensor.T
        assert len(objects) == 5
        assert (0 <= x0).all()
        assert (x0 <= x1).all()
        assert (x1 <= objects.image_size[1]).all()
        assert (y1 <= objects.image_size[0]).all()
        areas = objects.gt_masks.tensor.sum((1, 2))
        assert torch.equal(areas, ((x1.ceil() - x0.ceil()) * (y1.ceil() - y0.ceil())).long())
    again = random_batch([(40, 60), (30, 50)], num_classes=3, objects=5)
    assert torch.equal(again[1]["image"], batch[1]["image"])


@pytest.mark.parametrize("model", ["box", "masks", "panoptic"])
def test_inference(model):
    result = compare(Inference(names=BOTH, model=model, size=(64, 96), batch=2, options=SMALL), rounds=1, warmup=0)
    assert result["title"] == f"inference: {model}, 64 x 96, batch 2"
    assert result["implementations"][1]["difference"] < 1e-4


@pytest.mark.parametrize("model", ["box", "masks", "panoptic"])
def test_inference_results_depend_on_images(monkeypatch, model):
    """Otherwise, all implementations would agree."""
    case = Inference(names=BOTH, model=model, size=(64, 96), options=SMALL)
    expected = case.build("ours").outputs()
    monkeypatch.setattr(models, "random_batch", lambda *arguments: random_batch(*arguments, seed=1))
    other = case.build("ours").outputs()
    assert max(differences(other, expected).values()) > 10 * inference.TOLERANCES["float32"]


@pytest.mark.slow
def test_training():
    names = ("python-detr", "ours", "ours-checkpoints", "ours-bf16")
    result = compare(Training(names=names, size=(64, 96), options=SMALL), 1, warmup=0)
    found = [x["difference"] for x in result["implementations"]]
    assert found[1] < 1e-4
    assert found[2] == found[1]
    assert 0 < found[3] < 0.05


@pytest.mark.slow
def test_compiled_training(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", counter)
    result = compare(Training(names=("ours", "ours-compiled"), size=(64, 96), options=SMALL), 1, warmup=0)
    assert result["implementations"][1]["difference"] < 1e-4
    assert bool(counter.frame_count) == can_compile_training()


def test_keeping_freed_memory():
    """Ours does, as our programs do, and the "-kept" ones, which are the same otherwise."""
    training = Training(names=BOTH, size=(64, 96), options=SMALL).deterministic()
    for case in (Inference(names=BOTH, size=(64, 96), options=SMALL), training):
        plain, kept, ours = (case.build(x) for x in ("python-detr", "python-detr-kept", "ours-bf16"))
        assert [x.keeps_freed_memory for x in (plain, kept, ours)] == [False, True, True]
        assert differences(kept.outputs(), plain.outputs()).popitem()[1] == 0


def test_training_steps_learn():
    (losses,) = Training(names=BOTH, size=(64, 96), options=SMALL).deterministic().build("ours").outputs().values()
    assert losses[1] < losses[0] - 0.01


@pytest.mark.slow
def test_transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    names = ("python-detr", "transformers")
    for case in (
        Inference(names=names, size=(64, 96), options=SMALL),
        Training(names=names, size=(64, 96), options=SMALL),
    ):
        assert compare(case, rounds=1, warmup=0)["implementations"][1]["difference"] < 1e-3


@pytest.mark.parametrize("part", PARTS)
def test_criterion(part):
    result = compare(Criterion(part=part, batch=2, objects=3), rounds=1, warmup=0)
    assert result["implementations"][1]["difference"] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.DETR.TRANSFORMER", "SmcaTransformer"), "The original DETR has no MODEL.DETR.TRANSFORMER SmcaTransf"),
        (("MODEL.RESNETS.NORM", "GN"), "The original DETR has no MODEL.RESNETS.NORM GN"),
        (("MODEL.DETR.NHEAD", "4"), "there is no config key MODEL.DETR.NHEAD"),
    ],
)
def test_models_that_the_original_does_not_have(options, message):
    with pytest.raises(UserError, match=message):
        Inference(names=BOTH, options=options).build("python-detr")
