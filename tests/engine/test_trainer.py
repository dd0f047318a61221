import math

import pytest
from detectron2.engine import HookBase, TrainerBase

from detr_d2.data import DetrDatasetMapper, MixingMapper
from detr_d2.engine import Trainer, build_optimizer, loading_options
from detr_d2.engine.step import TrainingStep
from detr_d2.engine.tracking import Tracking
from detr_d2.utils.errors import UserError


def test_loading_options(make_cfg):
    assert loading_options(make_cfg()) == {"resize_queries": False, "classes_by_name": False}
    cfg = make_cfg("MODEL.DETR.LOAD.QUERIES", "resize", "MODEL.DETR.LOAD.CLASSES", "by_name")
    assert loading_options(cfg) == {"resize_queries": True, "classes_by_name": True}


@pytest.mark.parametrize("key", ["MODEL.DETR.LOAD.QUERIES", "MODEL.DETR.LOAD.CLASSES"])
def test_unknown_loading_options(make_cfg, key):
    with pytest.raises(UserError, match=f"{key} is 'sometimes': choose one of"):
        loading_options(make_cfg(key, "sometimes"))


@pytest.fixture
def make_trainer(make_cfg, make_model, make_inputs):
    """Return a function that makes a trainer of two images, with losses logged every 20 steps, as on a GPU."""

    def make(max_iter: int = 3, checkpoint_period: int = 5000) -> Trainer:
        cfg = make_cfg("SOLVER.CHECKPOINT_PERIOD", checkpoint_period)
        model = make_model().train()
        inputs = make_inputs([(64, 64)] * 2, [1, 2])
        trainer = Trainer.__new__(Trainer)
        TrainerBase.__init__(trainer)
        trainer.tracking = Tracking.from_config(cfg)
        trainer.checkpoint_period, trainer.expected_results = checkpoint_period, ()
        trainer.cfg, trainer.start_iter, trainer.max_iter = cfg, 0, max_iter
        trainer._trainer = TrainingStep(model, [inputs] * max_iter, build_optimizer(cfg, model), log_period=20)
        return trainer

    return make


def test_losses_are_complete_at_the_end(make_trainer):
    trainer = make_trainer()
    TrainerBase.train(trainer, 0, 3)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [0, 1, 2]


def test_memory_of_metrics_is_bounded(make_trainer, monkeypatch):
    monkeypatch.setattr("detr_d2.engine.trainer._HISTORY_LENGTH", 2)
    trainer = make_trainer()
    trainer._stopped = False
    trainer.train()
    assert {name: len(x.values()) for name, x in trainer.storage.histories().items() if len(x.values()) != 2} == {}
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [1, 2]


@pytest.mark.parametrize(("checkpoint_period", "found"), [(5000, 2), (2, 1)])
def test_loss_that_is_not_finite(make_trainer, monkeypatch, checkpoint_period, found):
    """It is found at the end, or before a checkpoint is written; the error names the iteration of the loss."""
    trainer = make_trainer(checkpoint_period=checkpoint_period)
    criterion = trainer._trainer.unwrapped_model.criterion
    # Predictions are finite, so that the matcher raises no error.
    monkeypatch.setitem(criterion.weights, "loss_giou", math.inf)
    monkeypatch.setattr(trainer._trainer.optimizer, "step", lambda: None)
    message = rf"^Found in iteration {found}, at learning rates 1e-05, 0.0001: .*infinite or NaN at iteration=0!"
    with pytest.raises(FloatingPointError, match=message):
        TrainerBase.train(trainer, 0, 3)


def test_predictions_that_are_not_finite(make_trainer):
    """The matcher finds them before the loss of the step that changed the weights was read."""
    trainer = make_trainer()
    trainer._trainer.unwrapped_model.criterion.weights["loss_giou"] = math.inf
    with pytest.raises(FloatingPointError, match=r"Found in iteration 1.*object 0.* became .* NaN in iteration 0\.$"):
        TrainerBase.train(trainer, 0, 3)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_losses_are_written_when_training_ends_early(make_trainer, error):
    """Those of the steps since the last line of the log, too."""

    class Fail(HookBase):
        def before_step(self):
            if self.trainer.iter == 2:
                raise error

    trainer = make_trainer(max_iter=5)
    trainer._stopped = False
    trainer.register_hooks([Fail()])
    with pytest.raises(error):
        trainer.train()
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [0, 1]


def test_a_trainer_checks_its_config(make_cfg):
    with pytest.raises(UserError, match=r"SOLVER.ACCUMULATE is 0"):
        Trainer(make_cfg("SOLVER.ACCUMULATE", 0))


@pytest.mark.parametrize("key", ["INPUT.MOSAIC", "INPUT.COPY_PASTE"])
def test_images_are_mixed_in_the_first_part_of_a_training(
    noise_records, make_run_cfg, catalog, tmp_path, monkeypatch, key
):
    """In which the mapper gives no samples but tells what it would do."""
    catalog("noise", noise_records)
    monkeypatch.setattr(MixingMapper, "__call__", lambda self, record: "mixed")
    monkeypatch.setattr(DetrDatasetMapper, "__call__", lambda self, record: "plain")
    for until, expected in ((0.5, ["mixed"] * 3 + ["plain"] * 3), (1.0, ["mixed"] * 6), (0.0, ["plain"] * 6)):
        loader = Trainer.build_train_loader(make_run_cfg(tmp_path, key, 0.1, "INPUT.MIX_UNTIL", until))
        assert [batch for batch, _ in zip(loader, range(6), strict=False)] == [[x] * 4 for x in expected]
