"""What configs must fulfil on this machine, and for training; what holds everywhere is in detr_d2/config/defaults.py."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from detr_d2.config.defaults import choice
from detr_d2.utils.errors import UserError

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CHECKPOINTED_PARTS = ("backbone", "transformer")
"""What ``SOLVER.ACTIVATION_CHECKPOINTS`` may name."""


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """What ``SOLVER.AMP`` computes the network in; None: float32."""
    amp = cfg.SOLVER.AMP
    return choice(AMP_DTYPES, "SOLVER.AMP.DTYPE", amp.DTYPE) if amp.ENABLED else None


def check_parts(names: Sequence[str] | None) -> None:
    """
    Raises:
        UserError: ``names`` is None, or not all are in :data:`CHECKPOINTED_PARTS`.
    """
    if names is None:
        raise UserError("SOLVER.ACTIVATION_CHECKPOINTS is None: set (), or name parts of the model.")
    for name in names:
        choice(dict.fromkeys(CHECKPOINTED_PARTS), "SOLVER.ACTIVATION_CHECKPOINTS", name)


def check_device(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: this machine has no such device, or it can not do what the config asks for.
    """
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"MODEL.DEVICE is {device}, but PyTorch finds no CUDA GPU: add MODEL.DEVICE cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("MODEL.DEVICE is mps, but PyTorch finds no Apple GPU: add MODEL.DEVICE cpu.")
    _check_amp(cfg)


def _check_amp(cfg: CfgNode) -> None:
    device, dtype = torch.device(cfg.MODEL.DEVICE).type, amp_dtype(cfg)
    if dtype is None:
        return
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"SOLVER.AMP.ENABLED True needs a CUDA GPU or a CPU, and MODEL.DEVICE is {device}: set it False."
        )
    if dtype == torch.float16 and device == "cpu":
        raise UserError("SOLVER.AMP.DTYPE is float16, which needs a CUDA GPU; MODEL.DEVICE is cpu: set bfloat16.")
    if dtype == torch.bfloat16 and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("SOLVER.AMP.DTYPE is bfloat16, which this GPU does not know: set float16.")


_LEAST = (("SOLVER", "MAX_ITER", 1), ("SOLVER", "CHECKPOINT_PERIOD", 1), ("DATALOADER", "NUM_WORKERS", 0))
"""The smallest values of keys of Detectron2 that training would fail with otherwise."""
_NAMES = {
    "LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "WARMUP_METHOD": ("linear", "constant"),
}
"""What Detectron2 knows, by key of ``SOLVER``."""


def check_training(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: training would fail with this config, or with so many processes.
    """
    size, processes, parts = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size(), cfg.SOLVER.ACCUMULATE
    if size < 1 or size % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {size} is not a multiple of the number of processes, {processes}: every process "
            "takes an equal share of the batch. --num-gpus sets how many there are, on a CPU too."
        )
    if parts < 1 or size // processes % parts:
        raise UserError(
            f"SOLVER.ACCUMULATE is {parts}: set a divisor of {size // processes}, the images of a process "
            "(SOLVER.IMS_PER_BATCH, shared by the processes)."
        )
    for section, key, least in _LEAST:
        if cfg[section][key] < least:
            raise UserError(f"{section}.{key} is {cfg[section][key]}: set {least} or more.")
    for key, names in _NAMES.items():
        choice(dict.fromkeys(names), f"SOLVER.{key}", cfg.SOLVER[key])
    check_parts(cfg.SOLVER.ACTIVATION_CHECKPOINTS)
    if cfg.SOLVER.COMPILE and cfg.MODEL.DETR.FROZEN_WEIGHTS:
        raise UserError(
            "SOLVER.COMPILE True compiles the layers of the transformer in training, which MODEL.DETR.FROZEN_WEIGHTS "
            "keeps as they are: set it False."
        )
