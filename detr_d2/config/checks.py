"""Checks of a config: what a model and its training require, before anything is built."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from detr_d2.config.defaults import TRAINING_ONLY
from detr_d2.config.pixel_checks import check_channels
from detr_d2.utils.errors import UserError

PRECISIONS = ("float32", "bfloat16", "float16")
"""Values of MODEL.DETR.TEST.PRECISION; the names are PyTorch's."""
BACKENDS = ("pytorch", "openvino", "onnxruntime")
"""Values of MODEL.DETR.TEST.BACKEND."""
AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Values of SOLVER.AMP.DTYPE."""

_Range = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Range = ("1 or more", lambda x: x >= 1)
_NOT_NEGATIVE: _Range = ("0 or more", lambda x: x >= 0)
_MODEL_RANGES: dict[str, _Range] = {
    "MODEL.DETR.NUM_CLASSES": _POSITIVE,
    "MODEL.DETR.NHEADS": _POSITIVE,
    "MODEL.DETR.DEC_LAYERS": _POSITIVE,
    "MODEL.DETR.NUM_OBJECT_QUERIES": _POSITIVE,
    "MODEL.DETR.HIDDEN_DIM": _POSITIVE,
    "MODEL.DETR.DIM_FEEDFORWARD": _POSITIVE,
    "MODEL.DETR.QUERY_GROUPS": _POSITIVE,
    "MODEL.DETR.DENSE_WEIGHT": _NOT_NEGATIVE,
    "MODEL.DETR.DENOISING.GROUPS": _NOT_NEGATIVE,
    "MODEL.DETR.DENOISING.BOX_NOISE": ("a share of half the box, from 0", lambda x: x >= 0),
    "MODEL.DETR.DENOISING.LABEL_NOISE": ("a probability from 0 to 1", lambda x: 0 <= x <= 1),
    "MODEL.DETR.MASK.THRESHOLD": ("a probability between 0 and 1", lambda x: 0 < x < 1),
    "MODEL.DETR.MASK.MAPS_GAIN": ("a positive factor", lambda x: x > 0),
    "MODEL.DETR.MASK.CHUNK": ("1 or more, or None", lambda x: x is None or x >= 1),
    "MODEL.DETR.TEST.SCORE_THRESHOLD": ("a score from 0 to 1", lambda x: 0 <= x <= 1),
    "MODEL.DETR.TEST.NMS_THRESHOLD": ("an IoU over 0, at most 1", lambda x: 0 < x <= 1),
    "MODEL.DETR.TEST.TILES": ("the side of a tile in pixels, 32 or more, or 0", lambda x: x == 0 or x >= 32),
    "MODEL.DETR.TEST.TILE_OVERLAP": ("a share from 0 to 0.9", lambda x: 0 <= x <= 0.9),
    "MODEL.DETR.TEST.TILE_THRESHOLD": ("a share over 0, at most 1", lambda x: 0 < x <= 1),
    "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": ("a probability from 0 to 1", lambda x: 0 <= x <= 1),
    "MODEL.DETR.PANOPTIC.MIN_AREA": ("0 or more, in pixels", lambda x: x >= 0),
    "MODEL.DETR.TOP_DOWN.BLOCKS": _NOT_NEGATIVE,
    "INPUT.CHANNELS": _POSITIVE,
    "INPUT.PROGRESSIVE.START": ("a scale over 0, at most 1", lambda x: 0 < x <= 1),
    "INPUT.PROGRESSIVE.UNTIL": ("a share from 0 to 1", lambda x: 0 <= x <= 1),
    "INPUT.MIX_UNTIL": ("a share from 0 to 1", lambda x: 0 <= x <= 1),
    "DATALOADER.CACHE_MEGABYTES": _NOT_NEGATIVE,
    "TEST.BATCH_SIZE": _POSITIVE,
}
_TRAINING_RANGES: dict[str, _Range] = {
    "SOLVER.MAX_ITER": _POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": _POSITIVE,
    "SOLVER.CHECKPOINTS_KEPT": _NOT_NEGATIVE,
    "SOLVER.EMA.DECAY": ("a share of at least 0 and less than 1", lambda x: 0 <= x < 1),
    "SOLVER.LAYER_DECAY": ("a factor over 0, at most 1", lambda x: 0 < x <= 1),
    "TEST.PATIENCE": _NOT_NEGATIVE,
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "LOGGING.IMAGES": _NOT_NEGATIVE,
}
# Those of Detectron2.
_TRAINING_NAMES = {
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}
# The default is None, for which Detectron2 accepts a value of any type.
_OPTIONAL_NUMBERS = ("MODEL.DETR.COST_CLASS", "MODEL.DETR.COST_L1", "MODEL.DETR.COST_GIOU")
_OPTIONAL_INTEGERS = ("MODEL.DETR.MASK.CHUNK", "MODEL.DETR.PANOPTIC.NUM_THINGS")


def check_model_config(cfg: CfgNode) -> None:
    """Check that a model can be built from ``cfg``, and run on this machine.

    Raises:
        UserError: names the key and its valid values.
    """
    if "DETR" not in cfg.MODEL:
        raise UserError("The config has no MODEL.DETR: call detr_d2.add_detr_config(cfg) before merging a YAML file.")
    for key in (*_OPTIONAL_NUMBERS, *_OPTIONAL_INTEGERS):
        kind, types = ("a number", (int, float)) if key in _OPTIONAL_NUMBERS else ("an integer", (int,))
        value = config_value(cfg, key)
        if value is not None and type(value) not in types:
            raise UserError(f"{key} is {value!r}: set {kind}, or None.")
    _check_ranges(cfg, _MODEL_RANGES)
    check_precision(cfg.MODEL.DETR.TEST.PRECISION)
    _check_name(BACKENDS, "MODEL.DETR.TEST.BACKEND", cfg.MODEL.DETR.TEST.BACKEND)
    detr = cfg.MODEL.DETR
    check_class_thresholds(cfg)
    check_channels(cfg)
    if detr.HIDDEN_DIM % detr.NHEADS:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} is not a multiple of MODEL.DETR.NHEADS {detr.NHEADS}: "
            "every head takes an equal share of the channels."
        )
    if detr.HIDDEN_DIM % 4:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM is {detr.HIDDEN_DIM}: set a multiple of 4, "
            "for the sines and cosines of two axes in the position embedding."
        )
    if detr.PANOPTIC.ENABLED and not cfg.MODEL.MASK_ON:
        raise UserError("MODEL.DETR.PANOPTIC.ENABLED needs masks: set MODEL.MASK_ON True.")
    if detr.TOP_DOWN.BLOCKS and not detr.TOP_DOWN.LEVELS:
        raise UserError(
            f"MODEL.DETR.TOP_DOWN.BLOCKS is {detr.TOP_DOWN.BLOCKS}, but there is nothing that they follow: name the "
            "levels to join with MODEL.DETR.TOP_DOWN.LEVELS, or set 0."
        )
    num_things = detr.PANOPTIC.NUM_THINGS
    if num_things is not None and not 0 <= num_things <= detr.NUM_CLASSES:
        raise UserError(
            f"MODEL.DETR.PANOPTIC.NUM_THINGS is {num_things}: set how many of the "
            f"MODEL.DETR.NUM_CLASSES {detr.NUM_CLASSES} classes are things."
        )
    if detr.FROZEN_WEIGHTS and not cfg.MODEL.MASK_ON:
        raise UserError(
            "MODEL.DETR.FROZEN_WEIGHTS is for training a mask head over a fixed box model: set MODEL.MASK_ON True, or "
            "set MODEL.WEIGHTS to start from a checkpoint."
        )
    for key, off in TRAINING_ONLY.items():
        if detr.FROZEN_WEIGHTS and config_value(cfg, key) != off:
            raise UserError(f"{key} trains boxes, which MODEL.DETR.FROZEN_WEIGHTS keeps as they are: set {key} {off}.")
    check_device(cfg)


def check_training_config(cfg: CfgNode, num_processes: int) -> None:
    """Check that ``num_processes`` processes can train with ``cfg``.

    Raises:
        UserError: names the key and its valid values.
    """
    check_model_config(cfg)
    size, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if size < 1 or size % num_processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {size} is not a multiple of the number of processes, {num_processes}: every process "
            "takes an equal share of the batch. --num-gpus sets how many there are, on a CPU too."
        )
    if steps < 1 or size // num_processes % steps:
        raise UserError(
            f"SOLVER.ACCUMULATE is {steps}: set a divisor of {size // num_processes}, the images of a process "
            "(SOLVER.IMS_PER_BATCH, shared by the processes)."
        )
    _check_ranges(cfg, _TRAINING_RANGES)
    for key, names in _TRAINING_NAMES.items():
        _check_name(names, key, config_value(cfg, key))
    check_amp(cfg)
    check_parts(cfg.SOLVER.ACTIVATION_CHECKPOINTS)
    if cfg.TEST.PATIENCE and not (cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD):
        raise UserError(
            f"TEST.PATIENCE {cfg.TEST.PATIENCE} counts evaluations: set TEST.BEST_METRIC (bbox/AP) and "
            "TEST.EVAL_PERIOD."
        )
    if cfg.SOLVER.COMPILE and cfg.MODEL.DETR.FROZEN_WEIGHTS:
        raise UserError(
            "SOLVER.COMPILE True compiles the layers of the transformer in training, which MODEL.DETR.FROZEN_WEIGHTS "
            "keeps as they are: set it False."
        )


def check_class_thresholds(cfg: CfgNode) -> None:
    """Raise a UserError if ``MODEL.DETR.TEST.CLASS_THRESHOLDS`` are not scores, or not as many as classes."""
    thresholds, num_classes = cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS, cfg.MODEL.DETR.NUM_CLASSES
    if thresholds is None or any(not isinstance(x, int | float) or not 0 <= x <= 1 for x in thresholds):
        raise UserError(f"MODEL.DETR.TEST.CLASS_THRESHOLDS is {thresholds}: set scores from 0 to 1, or ().")
    if len(thresholds) not in (0, num_classes):
        raise UserError(
            f"MODEL.DETR.TEST.CLASS_THRESHOLDS has {len(thresholds)} scores, but MODEL.DETR.NUM_CLASSES is "
            f"{num_classes}: set one for each class, or (). They belong to the model they were calibrated with."
        )


def check_device(cfg: CfgNode) -> None:
    """Raise a UserError if this machine does not have the device ``MODEL.DEVICE``."""
    check_device_name(cfg.MODEL.DEVICE, "MODEL.DEVICE", "MODEL.DEVICE cpu")


def check_device_name(device: str, key: str, fix: str) -> None:
    """Raise a UserError, which names ``key`` and tells to add ``fix``, if this machine does not have ``device``."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"{key} is {device}, but PyTorch finds no CUDA GPU: add {fix}.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{key} is mps, but PyTorch finds no Apple GPU: add {fix}.")


def check_amp(cfg: CfgNode) -> None:
    """Raise a UserError if ``MODEL.DEVICE`` can't train in the precision of ``SOLVER.AMP``."""
    device, dtype = torch.device(cfg.MODEL.DEVICE).type, amp_dtype(cfg)
    if dtype is not None and device not in ("cpu", "cuda"):
        raise UserError(
            f"SOLVER.AMP.ENABLED True needs a CUDA GPU or a CPU, and MODEL.DEVICE is {device}: set it False."
        )
    if dtype == torch.float16 and device == "cpu":
        raise UserError("SOLVER.AMP.DTYPE is float16, which needs a CUDA GPU; MODEL.DEVICE is cpu: set bfloat16.")
    if dtype == torch.bfloat16 and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("SOLVER.AMP.DTYPE is bfloat16, which this GPU does not support: set float16.")


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the data type in which ``SOLVER.AMP`` computes the network; None for float32."""
    amp = cfg.SOLVER.AMP
    return choice(AMP_DTYPES, "SOLVER.AMP.DTYPE", amp.DTYPE) if amp.ENABLED else None


def reads_masks(cfg: CfgNode) -> bool:
    """Return whether a training reads masks: for a model of masks, or to paste objects."""
    return cfg.MODEL.MASK_ON or cfg.INPUT.COPY_PASTE > 0


def check_parts(names: Sequence[str] | None) -> None:
    """Raise a UserError if ``names`` is not a valid value of ``SOLVER.ACTIVATION_CHECKPOINTS``."""
    if names is None:
        raise UserError("SOLVER.ACTIVATION_CHECKPOINTS is None: set (), or name parts of the model.")
    for name in names:
        _check_name(("backbone", "transformer"), "SOLVER.ACTIVATION_CHECKPOINTS", name)


def check_precision(name: str) -> None:
    """Raise a UserError that lists :data:`PRECISIONS` if ``name`` is not one of them."""
    if name == "int8":
        raise UserError(
            "MODEL.DETR.TEST.PRECISION is int8, which needs calibration images: write a file with detr-d2 export "
            "--precision int8, and give it as MODEL.WEIGHTS. This key is then the precision of what is not quantized."
        )
    _check_name(PRECISIONS, "MODEL.DETR.TEST.PRECISION", name)


def choice(table: Mapping[str, Any] | Registry, key: str, name: str) -> Any:
    """Return the entry of ``table`` that the value ``name`` of ``key`` stands for; a UserError lists all entries."""
    _check_name(dict(table), key, name)
    return table.get(name)


def _check_name(names: Iterable[str], key: str, name: str) -> None:
    if name not in names:
        raise UserError(f"{key} is {name!r}: choose one of {', '.join(sorted(names))}.")


def _check_ranges(cfg: CfgNode, ranges: Mapping[str, _Range]) -> None:
    for key, (valid, is_valid) in ranges.items():
        value = config_value(cfg, key)
        if not is_valid(value):
            raise UserError(f"{key} is {value}: set {valid}.")


def config_value(cfg: CfgNode, key: str) -> Any:
    """Return what ``cfg`` holds under ``key`` ("MODEL.DEVICE"); None if it has no such key."""
    value = cfg
    for name in key.split("."):
        value = value.get(name) if isinstance(value, CfgNode) else None
    return value
