import pytest
import torch
from detectron2.solver import build_lr_scheduler

from detr_d2.config.checks import check_device, check_training
from detr_d2.utils.errors import UserError


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
def test_no_training(make_cfg, options, message):
    check_training(make_cfg())
    with pytest.raises(UserError, match=message):
        check_training(make_cfg(*options))


@pytest.mark.parametrize("scheduler", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"])
@pytest.mark.parametrize("warmup", ["linear", "constant"])
def test_schedules_that_detectron2_knows(make_cfg, scheduler, warmup):
    cfg = make_cfg("SOLVER.LR_SCHEDULER_NAME", scheduler, "SOLVER.WARMUP_METHOD", warmup)
    check_training(cfg)
    build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=1.0))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "float16, which needs a CUDA GPU"),
        ("half", "SOLVER.AMP.DTYPE is 'half': choose one of"),
    ],
)
def test_no_such_precision(make_cfg, dtype, message):
    check_device(make_cfg("SOLVER.AMP.ENABLED", True))
    with pytest.raises(UserError, match=message):
        check_device(make_cfg("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(make_cfg):
    with pytest.raises(UserError, match=r"MODEL.DEVICE is cuda.*add MODEL.DEVICE cpu"):
        check_device(make_cfg("MODEL.DEVICE", "cuda"))
