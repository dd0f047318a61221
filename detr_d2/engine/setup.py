"""From command-line arguments to a checked config, with logging set up."""

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from detr_d2.config import check_detr_config, find_config, load_config
from detr_d2.config.checks import check_device, check_training
from detr_d2.config.pixel_checks import check_pixel_statistics
from detr_d2.engine.own_data import use_own_data
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of ``args`` (as Detectron2's argument parser makes them), check it, set up the logger.

    ``args`` may also name files to train and evaluate on, see :func:`~detr_d2.engine.own_data.add_data_arguments`.
    """
    if args.config_file:
        # Detectron2's set-up logs the content of the file.
        args.config_file = find_config(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    data = use_own_data(cfg, args)
    check_detr_config(cfg)
    check_device(cfg)
    if not args.eval_only:
        check_training(cfg)
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


def _is_no_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))
