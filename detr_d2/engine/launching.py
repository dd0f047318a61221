"""Start of a run: its processes, and in each of them its config and its log."""

import argparse
import logging
import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
from detectron2.config import CfgNode
from detectron2.engine import DEFAULT_TIMEOUT, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import distributed, multiprocessing
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from detr_d2.config import check_model_config, check_training_config, find_config, load_config
from detr_d2.engine.data_conversion import convert_data
from detr_d2.engine.environments import Start, recognize
from detr_d2.engine.interruption import SIGNALS, forward_to, handled
from detr_d2.engine.own_data import use_own_data
from detr_d2.utils.allocator import keep_freed_memory
from detr_d2.utils.errors import Stopped, UserError
from detr_d2.utils.locks import lock_for_process, remove_abandoned

logger = logging.getLogger(__name__)

# Files that are locked until this process ends, by folder.
_LOCKS: dict[Path, IO] = {}
# What a checkpoint is called while it is written.
_UNFINISHED = ("model_*.pth.*tmp", "last_checkpoint.*tmp")


def launch_processes(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of a run, however it was started: see :func:`recognize`.

    Flags start ``args.num_gpus`` processes on each of ``args.num_machines`` machines. A run that torchrun or Slurm
    starts again is resumed.

    Raises:
        UserError: the flags are wrong, the processes do not find each other within ``args.start_timeout`` seconds, one
            of them was killed, or raised a UserError, whose traceback is left out.
        Stopped: a signal stopped the run.
    """
    start = recognize(args)
    args.start = str(start)
    if start.restarted:
        args.resume = True
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # One GPU may be what Slurm shows each of several tasks.
    if start.local_size > gpus > (0 if start.spawned else 1):
        asked = f"--num-gpus is {args.num_gpus}" if start.spawned else f"{start.launcher} needs {start.local_size} GPUs"
        raise UserError(f"{asked}, but this machine has {gpus}.")
    # A process or a loader's worker passes an error on as text, in which its message follows this.
    in_traceback = f"{UserError.__name__}: "
    try:
        if start.spawned:
            # Here, so that not each of the processes does it.
            convert_data(args)
            _spawn(main, args, start)
        else:
            _run(0, main, args, start)
    except (UserError, ProcessRaisedException) as e:
        if in_traceback not in str(e):
            raise
        raise UserError(str(e).rsplit(in_traceback, 1)[-1].strip()) from e


def _spawn(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, start: Start) -> None:
    """Start the processes of this machine, and wait for them; if one fails, the others are ended."""
    if start.url == "auto":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            start = start._replace(url=f"tcp://127.0.0.1:{free.getsockname()[1]}")
    processes = multiprocessing.start_processes(
        _run, (main, args, start), nprocs=start.spawned, join=False, start_method="spawn"
    )
    try:
        with handled(forward_to(processes.pids())):
            while not processes.join():
                pass
    except ProcessExitedException as e:
        if e.exit_code in {128 + x for x in SIGNALS}:
            raise Stopped(e.exit_code - 128) from e
        if e.exit_code >= 0:
            raise
        raise UserError(
            f"Process {e.error_index} of this machine was killed by {e.signal_name}, perhaps because the memory was "
            "used up. The others were ended; continue with --resume."
        ) from e


def _run(index: int, main: Callable[[argparse.Namespace], object], args: argparse.Namespace, start: Start) -> None:
    """Run ``main(args)`` in this process, the one with this index on this machine if it was spawned."""
    keep_freed_memory()
    start = start._replace(rank=start.rank + index, local_rank=start.local_rank + index)
    if start.world_size > 1:
        args.start = str(start)
        join_process_group(start, timedelta(seconds=getattr(args, "start_timeout", 300)))
        # Where torchrun starts a machine again because of another one, it does not count that as an attempt.
        args.resume = any(comm.all_gather(getattr(args, "resume", False)))
    try:
        main(args)
    except Stopped:
        leave_process_group()
        raise
    leave_process_group()


def join_process_group(start: Start, timeout: timedelta) -> None:
    """Connect this process to the others, and choose its GPU.

    Raises:
        UserError: not all processes have come in time, or the address can't be used.
    """
    url, on_gpu = start.url, torch.cuda.is_available()
    try:
        store, _, _ = next(rendezvous(url, start.rank, start.world_size, timeout=timeout))
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=start.rank,
            world_size=start.world_size,
            timeout=DEFAULT_TIMEOUT,
        )
        store.set_timeout(DEFAULT_TIMEOUT)
    except (RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0]
        if "EADDRINUSE" in reason or "in use" in reason:
            raise UserError(
                f"The address {url} is in use, perhaps by processes that a run left behind: end them, or give another "
                "port (--dist-url auto on one machine; MASTER_PORT under torchrun and srun)."
            ) from e
        raise UserError(
            f"Process {start.rank} of {start.world_size} did not find the others at {url} within "
            f"{timeout.total_seconds():.0f} s ({reason}): start all of them, with the same address and numbers, and "
            "see docs/CLUSTERS.md. --start-timeout sets the time."
        ) from e
    comm.create_local_process_group(start.local_size)
    if on_gpu:
        # With one visible GPU per task, each is number 0.
        torch.cuda.set_device(start.local_rank % torch.cuda.device_count())
    comm.synchronize()


def leave_process_group() -> None:
    """Wait for the other processes, if there are any, and close the connections to them.

    Threads of open connections can abort a process while it exits: its result then counts as a failure.
    """
    if distributed.is_initialized():
        comm.synchronize()
        distributed.destroy_process_group()


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
    start_run(cfg, args, ("OUTPUT_DIR", cfg.OUTPUT_DIR), cfg.MODEL.DEVICE, data)
    return cfg


def start_run(
    cfg: CfgNode | DictConfig, args: argparse.Namespace, output: tuple[str, str], device: str, messages: Sequence[str]
) -> None:
    """Set up the output folder, the log and the threads of a run.

    Args:
        cfg: config of the run, which is logged.
        args: arguments of the command.
        output: the key of the output folder, and its path.
        device: device of the model.
        messages: first messages for the log.
    """
    key, folder = output
    try:
        abandoned = [] if args.eval_only or not comm.is_main_process() else lock_output(Path(folder), key)
        default_setup(cfg, args)
    except OSError as e:
        raise UserError(f"{key} is {folder}, which can't be written to ({e}): choose another.") from e
    setup_logger(folder, distributed_rank=comm.get_rank(), name="detr_d2")
    removed = [f"Removed {x}, of a run that was killed." for x in abandoned]
    for message in (getattr(args, "start", ""), *messages, *removed):
        if message:
            logger.info(message)
    if device == "cpu" and comm.get_world_size() > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))


def lock_output(folder: Path, key: str = "OUTPUT_DIR") -> list[str]:
    """Make the output folder of a training run, lock it, and remove what killed runs left half-written in it.

    ``key`` is the config key of the folder, for the error.

    Returns:
        The names of the files that were removed.

    Raises:
        UserError: another training run uses the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if folder not in _LOCKS:
        # Opened for appending: the process that holds the lock has written its number.
        file = open(folder / ".lock", "a+")  # noqa: SIM115
        if lock_for_process(file) is False:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"{key} is {folder}, in which another run is training (process {holder}): wait until it ends, end "
                f"it, or choose another {key}."
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        _LOCKS[folder] = file
    return [name for pattern in _UNFINISHED for name in remove_abandoned(folder, pattern)]
