"""Averaged weights, the best checkpoint, early stopping, and what the checkpoints of such runs hold."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch.testing import assert_close

from detr_d2.checkpoint import DetrCheckpointer, split_training_only
from detr_d2.checkpoint.conversion import convert_checkpoint
from detr_d2.engine import Trainer
from detr_d2.utils.errors import UserError

AVERAGE = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)
TRAINING_ONLY = ("MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2, "MODEL.DETR.DENSE_WEIGHT", 0.3)
NO_NOISE = ("MODEL.DETR.DENOISING.BOX_NOISE", 0.0, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0)
BEST = ("TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 2)


@pytest.fixture
def make_trainer(make_cfg, make_inputs, tmp_path, monkeypatch):
    """Return a function that makes a trainer whose batches are always the same, and whose evaluations give ``aps``."""
    inputs = make_inputs([(64, 64)] * 2, [1, 2])

    def make(*options, iterations: int = 6, aps: tuple[float, ...] = (), folder: str = "run") -> Trainer:
        (tmp_path / folder).mkdir(exist_ok=True)
        cfg = make_cfg(
            *("OUTPUT_DIR", str(tmp_path / folder), "SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 3),
            # Fewer layers: checkpoints are written faster.
            *("MODEL.RESNETS.OUT_FEATURES", ["res3"], "MODEL.DETR.DROPOUT", 0.0),
            *("SOLVER.IMS_PER_BATCH", 2, "DATASETS.TRAIN", (), "DATASETS.TEST", ()),
            *options,
        )
        results = iter(aps)
        monkeypatch.setattr("detr_d2.engine.trainer.check_datasets", lambda cfg: None)
        monkeypatch.setattr(Trainer, "build_train_loader", staticmethod(lambda cfg: [inputs] * 1000))
        evaluate = staticmethod(lambda cfg, model: {"bbox": {"AP": next(results)}} if aps else {})
        monkeypatch.setattr(Trainer, "test", evaluate)
        torch.manual_seed(0)
        return Trainer(cfg)

    return make


def test_average(make_trainer):
    """Its weights are the average that the formula gives, one step at a time, batch norms' statistics included."""
    trainer = make_trainer(*AVERAGE, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
    trainer.resume_or_load(resume=False)
    model = trainer.checkpointer.model
    expected = None
    run_step = trainer.run_step

    def observed_step():
        nonlocal expected
        run_step()
        weights = {name: x.clone() for name, x in model.state_dict().items() if x.is_floating_point()}
        decay = min(0.5, (1 + trainer.iter) / (10 + trainer.iter))
        if expected is None:
            expected = weights
        expected = {name: decay * x + (1 - decay) * weights[name] for name, x in expected.items()}

    trainer.run_step = observed_step
    trainer.train()
    averaged = trainer.trained_model.state_dict()
    assert trainer.trained_model is not model
    for name, x in expected.items():
        assert_close(averaged[name], x, rtol=1e-5, atol=1e-6)
        if "running_mean" in name or "query_embed" in name:
            assert not torch.equal(averaged[name], model.state_dict()[name])


def test_the_average_is_evaluated(make_trainer, monkeypatch):
    trainer = make_trainer(*AVERAGE, "TEST.EVAL_PERIOD", 3)
    evaluated = []
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda cfg, model: evaluated.append(model) or {}))
    trainer.train()
    assert evaluated == [trainer.trained_model] * 2


@pytest.mark.parametrize("options", [AVERAGE, TRAINING_ONLY])
def test_final_checkpoint_is_a_plain_model(make_trainer, make_model, tmp_path, options):
    """A plain model loads it strictly, with Detectron2's checkpointer too, and it has no state of the training."""
    trainer = make_trainer(*options)
    trainer.train()
    file = tmp_path / "run" / "model_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint.keys() == {"model", "iteration"}
    plain = make_model("MODEL.RESNETS.OUT_FEATURES", ["res3"])
    plain.load_state_dict(checkpoint["model"])
    DetrCheckpointer(plain, allow_new_head=False).load(str(file))
    assert not DetectionCheckpointer(plain).load(str(file)).get("unexpected")
    expected = trainer.trained_model.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in plain.state_dict().items())


@torch.no_grad()
def test_final_checkpoint_predicts_the_same_in_other_formats(
    make_trainer, make_cfg, make_original, make_inputs, original_batch, tmp_path
):
    """With every part of the training: the original and transformers load it, and their outputs are the model's."""
    fast = (*AVERAGE, *TRAINING_ONLY, "SOLVER.OPTIMIZER", "MUON", "MODEL.RESNETS.OUT_FEATURES", ["res5"])
    trainer = make_trainer(*fast, iterations=2)
    with torch.enable_grad():
        trainer.train()
    model = trainer.trained_model.eval()
    file = str(tmp_path / "run" / "model_final.pth")
    inputs = make_inputs([(64, 96)], [1])
    ours = model.detr(model.preprocess_image(inputs), all_layers=False)

    cfg = make_cfg()
    original = make_original(cfg)
    convert_checkpoint(file, str(tmp_path / "original.pth"), to="original")
    original.load_state_dict(torch.load(tmp_path / "original.pth", weights_only=True)["model"], strict=True)
    samples = original_batch(inputs, cfg)[0]
    theirs = original(samples)
    assert_close(theirs["pred_logits"], ours.logits[-1], rtol=0, atol=1e-5)
    assert_close(theirs["pred_boxes"], ours.boxes[-1], rtol=0, atol=1e-5)

    transformers = pytest.importorskip("transformers")
    output = tmp_path / "transformers" / "model.safetensors"
    convert_checkpoint(file, str(output), to="huggingface", settings={"MODEL.DETR.NHEADS": cfg.MODEL.DETR.NHEADS})
    theirs = transformers.DetrForObjectDetection.from_pretrained(output.parent).eval()(samples.tensors)
    assert_close(theirs.logits, ours.logits[-1], rtol=0, atol=1e-5)
    assert_close(theirs.pred_boxes, ours.boxes[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "first"),
    [((*AVERAGE, *TRAINING_ONLY), 3), ((*AVERAGE, *TRAINING_ONLY), 4), (TRAINING_ONLY, 4), (BEST, 3)],
    ids=["average and queries", "average and queries, longer", "queries, longer", "best"],
)
def test_resumed_run_goes_on_as_if_uninterrupted(make_trainer, options, first):
    """From a checkpoint of the run (after 3), and from the end of a shorter one (after 4)."""
    options = (*options, *NO_NOISE, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
    torch.manual_seed(1)
    straight = make_trainer(*options, folder="straight", aps=(3.0, 4.0, 2.0))
    straight.resume_or_load(resume=False)
    noise = torch.get_rng_state()
    straight.train()
    interrupted = make_trainer(*options, iterations=first, folder="other", aps=(3.0, 4.0))
    interrupted.resume_or_load(resume=False)
    torch.set_rng_state(noise)
    interrupted.train()
    resumed = make_trainer(*options, folder="other", aps=(4.0, 2.0))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == first
    resumed.train()
    for a, b in (
        (straight.checkpointer.model, resumed.checkpointer.model),
        (straight.trained_model, resumed.trained_model),
    ):
        names = a.state_dict().keys()
        if b is resumed.trained_model and AVERAGE[0] in options:
            # What is for training alone is not in the average that a checkpoint holds.
            names = split_training_only(a.state_dict())[0]
        for name in names:
            assert_close(b.state_dict()[name], a.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)


def test_other_training_only_parts_are_not_resumed(make_trainer):
    make_trainer(*TRAINING_ONLY).train()
    with pytest.raises(UserError, match=r"resume it with its own MODEL\.DETR\.QUERY_GROUPS"):
        make_trainer("MODEL.DETR.QUERY_GROUPS", 3).resume_or_load(resume=True)


def test_weights_of_a_run_start_a_plain_run(make_trainer, tmp_path):
    make_trainer(*AVERAGE, *TRAINING_ONLY).train()
    plain = make_trainer("MODEL.WEIGHTS", str(tmp_path / "run" / "model_0000005.pth"), folder="plain")
    plain.resume_or_load(resume=False)
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(x, saved[name]) for name, x in plain.checkpointer.model.state_dict().items())


def test_plain_weights_fit_a_model_with_training_queries(make_model):
    """Also where Detectron2 loads them, with the config of the run."""
    plain, model = make_model(seed=1), make_model(*TRAINING_ONLY)
    groups = model.training_queries.group_embed.weight.clone()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.training_queries.group_embed.weight, groups)
    assert torch.equal(model.detr.query_embed.weight, plain.detr.query_embed.weight)


def test_best_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(*BEST, iterations=8, aps=(10.0, 30.0, 20.0, 25.0))
    trainer.train()
    best = torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)
    assert best.keys() == {"model", "iteration"}
    assert best["iteration"] == 3
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"


def test_early_stopping(make_trainer, tmp_path):
    """After two evaluations that are not better; the final checkpoint is there, and nothing more is evaluated."""
    trainer = make_trainer(*BEST, "TEST.PATIENCE", 2, iterations=100, aps=(10.0, 30.0, 20.0, 30.0))
    results = trainer.train()
    assert trainer.iter == 7
    assert results == {"bbox": {"AP": 30.0}}
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == 7


def test_old_checkpoints_are_removed(make_trainer, tmp_path):
    make_trainer("SOLVER.CHECKPOINTS_KEPT", 2, "SOLVER.CHECKPOINT_PERIOD", 1, iterations=5).train()
    assert sorted(x.name for x in (tmp_path / "run").glob("*.pth")) == [
        "model_0000003.pth",
        "model_0000004.pth",
        "model_final.pth",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TEST.PATIENCE", 2), r"TEST\.PATIENCE 2 counts evaluations: set TEST\.BEST_METRIC"),
        (("SOLVER.EMA.DECAY", 1.0), r"SOLVER\.EMA\.DECAY is 1\.0: set a share of at least 0 and less than 1"),
        (("SOLVER.CHECKPOINTS_KEPT", -1), r"SOLVER\.CHECKPOINTS_KEPT is -1"),
    ],
)
def test_bad_values(make_trainer, options, message):
    with pytest.raises(UserError, match=message):
        make_trainer(*options)
