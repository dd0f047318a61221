"""Start of a run: its processes, and in each of them its config and its log."""

import argparse
import logging
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed
from torch.multiprocessing import ProcessRaisedException

from detr_d2.config import check_model_config, check_training_config, find_config, load_config
from detr_d2.engine.own_data import use_own_data
from detr_d2.utils.allocator import keep_freed_memory
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def launch_processes(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in ``args.num_gpus`` processes on each of ``args.num_machines`` machines.

    Raises:
        UserError: the numbers of processes are wrong, or a process raised one, whose traceback is left out.
    """
    _check_processes(args)
    # A process or a loader's worker passes an error on as text, in which its message follows this.
    in_traceback = f"{UserError.__name__}: "
    try:
        launch(_start, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(main, args))
    except (UserError, ProcessRaisedException) as e:
        if in_traceback not in str(e):
            raise
        raise UserError(str(e).rsplit(in_traceback, 1)[-1].strip()) from e


def _start(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    keep_freed_memory()
    main(args)
    leave_process_group()


def leave_process_group() -> None:
    """Wait for the other processes, if there are any, and close the connections to them.

    Threads of open connections can abort a process while it exits: its result then counts as a failure.
    """
    if distributed.is_initialized():
        comm.synchronize()
        distributed.destroy_process_group()


def _check_processes(args: argparse.Namespace) -> None:
    machines, rank, gpus = args.num_machines, args.machine_rank, args.num_gpus
    if machines < 1:
        raise UserError(f"--num-machines is {machines}: give 1 or more.")
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank is {rank}: give each of the {machines} machines its own number, 0 or more.")
    # With --num-gpus 0 on several machines, each would train independently.
    if gpus < 0 or (gpus == 0 and machines > 1):
        raise UserError(f"--num-gpus is {gpus}: give the number of GPUs, or on a CPU of processes, of each machine.")
    if torch.cuda.is_available() and gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus is {gpus}, but this machine has {torch.cuda.device_count()}.")


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of ``args``, with :func:`~detr_d2.engine.own_data.use_own_data`, check it, and set up the log."""
    if args.config_file:
        # Detectron2's setup logs the content of the file.
        args.config_file = find_config(args.config_file)
    cfg = load_config(args.config_file, args.opts, trust=getattr(args, "trust", False))
    data = use_own_data(cfg, args)
    if args.eval_only:
        check_model_config(cfg)
    else:
        check_training_config(cfg, comm.get_world_size())
    cfg.freeze()
    try:
        default_setup(cfg, args)
    except OSError as e:
        raise UserError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, which can't be written to ({e}): choose another.") from e
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="detr_d2")
    for message in data:
        logger.info(message)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    return cfg
