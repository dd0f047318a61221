"""How the scripts end: with an exit code and, for a user's mistake, one message."""

import argparse
import logging
import sys
from collections.abc import Callable

from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from detr_d2.errors import UserError

logger = logging.getLogger("detr_d2")


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run ``main(args)`` in ``args.num_gpus`` processes on each of ``args.num_machines`` machines.

    Returns:
        The exit code: 0, or 1 after a :class:`UserError`, whose message was written to stderr.
    """
    try:
        launch(
            _in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as e:
        return e.exit_code
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def _in_process(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    try:
        main(args)
    except UserError as e:
        # A loader's worker wraps the message in its traceback.
        message = str(e).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()
        logger.debug("Refused:", exc_info=True)
        sys.stderr.write(f"error: {message}\n")
        sys.exit(1)
