import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from detr_d2.config import check_model_config, check_training_config
from detr_d2.engine import Trainer
from detr_d2.modeling.meta_arch import Detr
from detr_d2.utils.errors import UserError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.DETR.NHEADS", 5),
        ("MODEL.DETR.HIDDEN_DIM", 30),
        ("MODEL.DETR.NUM_CLASSES", 0),
        ("MODEL.DETR.DEC_LAYERS", 0),
        ("MODEL.DETR.NUM_OBJECT_QUERIES", 0),
        ("MODEL.DETR.POSITION_EMBEDDING", "cosine"),
        ("MODEL.DETR.TRANSFORMER", "Perceiver"),
        ("MODEL.DETR.FROZEN_WEIGHTS", "box.pth"),
        ("MODEL.DETR.MASK.THRESHOLD", 1.0),
        ("MODEL.DETR.MASK.CHUNK", 0),
        ("MODEL.DETR.MASK.CHUNK", "all"),
        ("MODEL.DETR.PANOPTIC.NUM_THINGS", 2.5),
        ("MODEL.DETR.TOP_DOWN.BLOCKS", -1),
        ("MODEL.DETR.TOP_DOWN.BLOCKS", 2),
        ("MODEL.DETR.COST_L1", "many"),
        ("MODEL.DETR.MASK.MAPS_GAIN", 0.0),
        ("MODEL.DETR.TEST.SCORE_THRESHOLD", 1.1),
        ("MODEL.DETR.TEST.CLASS_THRESHOLDS", (0.5, 0.5)),
        ("MODEL.DETR.TEST.CLASS_THRESHOLDS", (0.5, 0.5, 0.5, 0.5, 1.5)),
        ("MODEL.DETR.TEST.PRECISION", "half"),
        ("MODEL.DETR.TEST.NMS_THRESHOLD", 0.0),
        ("MODEL.DETR.TEST.TILES", 8),
        ("MODEL.DETR.TEST.TILE_OVERLAP", 1.0),
        ("MODEL.DETR.TEST.TILE_THRESHOLD", 0.0),
        ("TEST.BATCH_SIZE", 0),
        ("DATALOADER.CACHE_MEGABYTES", -1),
    ],
)
def test_refused_values_name_their_key(make_cfg, key, value):
    for build in (Detr, build_model):
        with pytest.raises(UserError, match=key):
            build(make_cfg(key, value))


def test_forgotten_add_detr_config():
    with pytest.raises(UserError, match="add_detr_config"):
        check_model_config(get_cfg())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.IMS_PER_BATCH", 0), r"SOLVER.IMS_PER_BATCH 0 .*--num-gpus"),
        (("SOLVER.IMS_PER_BATCH", 64, "SOLVER.ACCUMULATE", 5), "SOLVER.ACCUMULATE is 5: set a divisor of 64"),
        (("SOLVER.IMS_PER_BATCH", 64, "SOLVER.ACCUMULATE", 0), "SOLVER.ACCUMULATE is 0: set a divisor of 64"),
        (("SOLVER.MAX_ITER", 0), "SOLVER.MAX_ITER is 0: set 1 or more"),
        (("DATALOADER.NUM_WORKERS", -1), "DATALOADER.NUM_WORKERS is -1: set 0 or more"),
        (("SOLVER.CHECKPOINT_PERIOD", 0), "SOLVER.CHECKPOINT_PERIOD is 0: set 1 or more"),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
            "SOLVER.LR_SCHEDULER_NAME is 'WarmupPolyLR': choose one of WarmupCosineLR, WarmupMultiStepLR, Warmup",
        ),
        (("SOLVER.WARMUP_METHOD", "none"), "SOLVER.WARMUP_METHOD is 'none': choose one of constant, linear"),
        (("SOLVER.ACTIVATION_CHECKPOINTS", ("head",)), "is 'head': choose one of backbone, transformer"),
        (("SOLVER.ACTIVATION_CHECKPOINTS", None), "SOLVER.ACTIVATION_CHECKPOINTS is None: set"),
        (
            ("SOLVER.COMPILE", True, "MODEL.MASK_ON", True, "MODEL.DETR.FROZEN_WEIGHTS", "boxes.pth"),
            "SOLVER.COMPILE True compiles .* MODEL.DETR.FROZEN_WEIGHTS keeps",
        ),
    ],
)
def test_training_is_refused(make_cfg, options, message):
    """By the check, which scripts call before they write anything, and by a trainer that is built in Python."""
    check_training_config(make_cfg(), num_processes=1)
    with pytest.raises(UserError, match=message):
        check_training_config(make_cfg(*options), num_processes=1)
    with pytest.raises(UserError, match=message):
        Trainer(make_cfg(*options))


def test_the_batch_is_shared_by_the_processes(make_cfg):
    cfg = make_cfg("SOLVER.IMS_PER_BATCH", 8, "SOLVER.ACCUMULATE", 4)
    check_training_config(cfg, num_processes=2)
    with pytest.raises(UserError, match=r"SOLVER.IMS_PER_BATCH 8 is not a multiple of the number of processes, 3"):
        check_training_config(cfg, num_processes=3)
    with pytest.raises(UserError, match=r"SOLVER.ACCUMULATE is 4: set a divisor of 2, the images of a process"):
        check_training_config(cfg, num_processes=4)


@pytest.mark.parametrize("scheduler", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"])
@pytest.mark.parametrize("warmup", ["linear", "constant"])
def test_schedules_of_detectron2(make_cfg, scheduler, warmup):
    cfg = make_cfg("SOLVER.LR_SCHEDULER_NAME", scheduler, "SOLVER.WARMUP_METHOD", warmup)
    check_training_config(cfg, num_processes=1)
    build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=1.0))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "float16, which needs a CUDA GPU"),
        ("half", "SOLVER.AMP.DTYPE is 'half': choose one of"),
    ],
)
def test_precision_of_training(make_cfg, dtype, message):
    check_training_config(make_cfg("SOLVER.AMP.ENABLED", True), num_processes=1)
    cfg = make_cfg("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype)
    # Inference does not use it: a model that a GPU trained can predict on a CPU.
    check_model_config(cfg)
    for check in (lambda: check_training_config(cfg, num_processes=1), lambda: Trainer(cfg)):
        with pytest.raises(UserError, match=message):
            check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(make_cfg):
    for check in (check_model_config, build_model, Trainer):
        with pytest.raises(UserError, match=r"MODEL.DEVICE is cuda.*add MODEL.DEVICE cpu"):
            check(make_cfg("MODEL.DEVICE", "cuda"))
