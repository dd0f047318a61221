"""How the scripts end: with an exit code and, for a user's mistake, one message."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import torch
from detectron2.config import get_cfg
from detectron2.engine import launch
from torch.multiprocessing import ProcessRaisedException

from detr_d2.utils.allocator import keep_freed_memory
from detr_d2.utils.errors import UserError

# Where a process or a loader's worker hands on an error as text, the message stands behind this.
_IN_TRACEBACK = f"{UserError.__name__}: "


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run ``main(args)`` in ``args.num_gpus`` processes on each of ``args.num_machines`` machines.

    Returns:
        The exit code: 0, 1 after a :class:`UserError`, whose message was written to stderr, or 130 after Ctrl-C.
    """
    try:
        _check_processes(args)
        launch(
            _start,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except (UserError, ProcessRaisedException) as e:
        if isinstance(e, ProcessRaisedException) and _IN_TRACEBACK not in str(e):
            raise
        sys.stderr.write(f"error: {str(e).rsplit(_IN_TRACEBACK, 1)[-1].strip()}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _start(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """In each of the processes."""
    keep_freed_memory()
    main(args)


def take_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the words of a command line into flags with their values, and ``KEY VALUE`` pairs of the config.

    For parsers whose flags take any number of values, and would take the pairs for some of them.
    """
    sections = get_cfg()
    rest, pairs = list(words), []
    for i in reversed(range(len(rest))):
        if rest[i].partition(".")[0] in sections and not os.path.exists(rest[i]):
            pairs[:0] = rest[i : i + 2]
            del rest[i : i + 2]
    return rest, pairs


def _check_processes(args: argparse.Namespace) -> None:
    machines, wanted, found = args.num_machines, args.num_gpus, torch.cuda.device_count()
    if machines < 1:
        raise UserError(f"--num-machines is {machines}: give 1 or more.")
    if not 0 <= args.machine_rank < machines:
        raise UserError(f"--machine-rank is {args.machine_rank}: give each of the {machines} machines its own, from 0.")
    # Of several machines without processes each would train alone.
    if wanted < 0 or (wanted == 0 and machines > 1):
        raise UserError(f"--num-gpus is {wanted}: give the number of GPUs, or on a CPU of processes, of each machine.")
    if torch.cuda.is_available() and wanted > found:
        raise UserError(f"--num-gpus is {wanted}, but this machine has {found}.")
