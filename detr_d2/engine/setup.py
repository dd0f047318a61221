"""From command-line arguments to a checked config."""

import argparse
import difflib
import logging
import re
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from detr_d2.config import add_detr_config, check_detr_config, choice
from detr_d2.engine.own_data import use_own_data
from detr_d2.engine.steps import amp_dtype
from detr_d2.errors import UserError
from detr_d2.modeling.activation_checkpoints import PARTS
from detr_d2.modeling.backbone_checks import check_pixel_statistics

logger = logging.getLogger(__name__)


def load_config(config_file: str, options: list[str]) -> CfgNode:
    """Detectron2's defaults, DETR's, a YAML file's and ``KEY VALUE`` pairs, each over the one before.

    Raises:
        UserError: names the file or option, the key, and the key that was probably meant.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    if config_file:
        if not PathManager.isfile(config_file):
            raise UserError(f"The config file {config_file} does not exist: give the path of a YAML file.")
        _merge(cfg, cfg.merge_from_file, config_file, source=f"config file {config_file}")
    if flags := [word for word in options if word.startswith("--")]:
        raise UserError(f"{flags[0]} stands among the options KEY VALUE: put flags before them.")
    if len(options) % 2:
        raise UserError(f"Options come as KEY VALUE pairs, but there are {len(options)} words: {' '.join(options)}")
    for key, value in zip(options[::2], options[1::2], strict=True):
        _merge(cfg, cfg.merge_from_list, [key, _as_float(cfg, key, value)], source=f"option {key} {value}")
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of ``args`` (as Detectron2's argument parser makes them), check it, set up the logger.

    ``args`` may also name files to train and evaluate on, see :func:`~detr_d2.engine.own_data.add_data_arguments`.
    """
    cfg = load_config(args.config_file, args.opts)
    data = use_own_data(cfg, args)
    check_detr_config(cfg)
    check_device(cfg)
    if not args.eval_only:
        _check_training(cfg)
        _check_checkpointed_parts(cfg)
        _check_compiled_parts(cfg)
    cfg.freeze()
    try:
        default_setup(cfg, args)
    except OSError as e:
        raise UserError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, which can't be written to ({e}): choose another.") from e
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="detr_d2")
    for message in data:
        logger.info(message)
    for message in check_pixel_statistics(cfg):
        logger.warning(message)
    # Detectron2's loop logs every exception with its traceback; a user's mistake is told once, by the script.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    return cfg


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


def _check_training(cfg: CfgNode) -> None:
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


def _check_checkpointed_parts(cfg: CfgNode) -> None:
    key = "SOLVER.ACTIVATION_CHECKPOINTS"
    if cfg.SOLVER.ACTIVATION_CHECKPOINTS is None:
        raise UserError(f"{key} is None: set (), or name parts of the model.")
    for name in cfg.SOLVER.ACTIVATION_CHECKPOINTS:
        choice(PARTS, key, name)


def _check_compiled_parts(cfg: CfgNode) -> None:
    if cfg.SOLVER.COMPILE and cfg.MODEL.DETR.FROZEN_WEIGHTS:
        raise UserError(
            "SOLVER.COMPILE True compiles the layers of the transformer in training, which MODEL.DETR.FROZEN_WEIGHTS "
            "keeps as they are: set it False."
        )


def _is_no_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


def _merge(cfg: CfgNode, merge, values, source: str) -> None:
    try:
        merge(values)
    except (KeyError, AssertionError, ValueError, TypeError) as e:
        raise UserError(f"In {source}: {_explain(cfg, str(e.args[0]))}") from e
    except AttributeError as e:
        # What fvcore makes of a text, or any file that happens to be one in YAML's eyes.
        raise UserError(
            f"In {source}: there are no keys with values in it; give a YAML file such as configs/*.yaml."
        ) from e
    except Exception as e:
        if type(e).__module__.startswith("yaml"):
            raise UserError(f"In {source}: not valid YAML: {e}") from e
        raise


def _as_float(cfg: CfgNode, key: str, value: str) -> str:
    """Detectron2 refuses a whole number, "1", where a key takes a fraction."""
    return f"{value}.0" if isinstance(_held(cfg, key), float) and re.fullmatch(r"[+-]?\d+", value) else value


def _held(cfg: CfgNode, key: str) -> Any:
    held = cfg
    for name in key.split("."):
        held = held.get(name) if isinstance(held, CfgNode) else None
    return held


# Of an exception of yacs: the type of what was given, what was given, and the key.
_MISMATCH = r"Type mismatch .*<class '([\w.]+)'>\) with values .* vs\. (.*)\) for config key: ([\w.]+)"
_FORMS = {"bool": "True or False", "float": "a number", "int": "a whole number", "str": "a text"}
"""What to set a key to, by the type of its default."""


def _explain(cfg: CfgNode, message: str) -> str:
    if match := re.search(_MISMATCH, message, re.DOTALL):
        return _explain_type(cfg, *match.groups())
    match = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not match:
        return message
    key = match[1]
    similar = difflib.get_close_matches(key, _all_keys(cfg), n=1)
    hint = f" Did you mean {similar[0]}?" if similar else " See docs of the keys in detr_d2/config.py."
    return f"there is no config key {key}.{hint}"


def _explain_type(cfg: CfgNode, given: str, value: str, key: str) -> str:
    value = repr(value) if given == "str" else value
    held = _held(cfg, key)
    if isinstance(held, CfgNode):
        return f"{key} is {value}, but holds keys of its own: set one of those."
    form = f'"({value},)"' if isinstance(held, tuple | list) else _FORMS[type(held).__name__]
    return f"{key} is {value}: set {form}."


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys.extend(_all_keys(value, f"{prefix}{name}."))
    return keys
