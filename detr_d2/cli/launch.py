r"""Submit a training or an evaluation to a Slurm cluster, with submitit (pip install 'detr_d2[slurm]').

The job runs one process per GPU. Two minutes before its time is over, or when it is preempted with SIGUSR2, it saves a
checkpoint, enters the queue again, and resumes; at SIGTERM it saves one and ends (docs/CLUSTERS.md).

Examples:
  two nodes of eight GPUs for a day:
    detr-d2 launch slurm --partition gpu --nodes 2 --gpus 8 --time 1440 \
        train --config-file detr_256_6_6_torchvision OUTPUT_DIR /shared/output/coco
  the same processes on this machine, to try it:
    detr-d2 launch local --gpus 0 train --config-file smca_shapes_cpu MODEL.DEVICE cpu OUTPUT_DIR output/trial
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detr_d2.cli.arguments import CommandParser, at_least
from detr_d2.cli.command import Command, exit_code
from detr_d2.cli.main import COMMANDS
from detr_d2.utils.errors import UserError

_COMMANDS = ("train", "eval", "overfit")
# Seconds before the end of the time in which a checkpoint is saved.
_SIGNAL_DELAY = 120
# A run may take as many slots of time as it needs.
_MAX_TIMEOUTS = 1000


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("cluster", choices=("slurm", "local"), help="slurm, or this machine")
    parser.add_argument("--partition", metavar="NAME", help="partition of Slurm (default: that of the cluster)")
    parser.add_argument("--nodes", type=at_least(1, "nodes"), default=1, metavar="N", help="nodes (default: 1)")
    parser.add_argument(
        "--gpus", type=at_least(0, "GPUs"), default=1, metavar="N", help="GPUs per node; 0: a CPU (default: 1)"
    )
    parser.add_argument(
        "--cpus", type=at_least(1, "cores"), default=8, metavar="N", help="CPU cores per process (default: 8)"
    )
    parser.add_argument(
        "--time", type=at_least(1, "minutes"), default=1440, metavar="MINUTES", help="time of a job (default: 1440)"
    )
    parser.add_argument(
        "--folder", default="output/jobs", metavar="DIR", help="folder of the jobs' logs (default: output/jobs)"
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND …", help="train, eval or overfit, with its flags")


@dataclass(frozen=True)
class Job:
    """One process of a job: a command of ``detr-d2``."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command; submitit calls this in every process."""
        from submitit.helpers import TorchDistributedEnvironment

        from detr_d2.cli.main import find_command

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        code = find_command(self.words[0])(self.words[1:])
        if code > 128:
            # The training has handled it. Submitit, which may put the job into the queue again, has not seen it yet.
            signal.raise_signal(code - 128)
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """Return what submitit puts in the queue instead of this job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, words=(*self.words, *["--resume"][: "--resume" not in self.words])))


def submit(job: Job, args: argparse.Namespace) -> Any:
    """Submit a job, and return submitit's handle of it.

    Raises:
        UserError: submitit or Slurm is missing.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as e:
        raise UserError("detr-d2 launch needs submitit: pip install 'detr_d2[slurm]'") from e
    try:
        executor = AutoExecutor(Path(args.folder).absolute(), slurm_max_num_timeout=_MAX_TIMEOUTS, cluster=args.cluster)
    except RuntimeError as e:
        raise UserError(f"This machine can't submit to Slurm ({e}): log in to the cluster, or launch local.") from e
    executor.update_parameters(
        name="detr-d2",
        nodes=args.nodes,
        tasks_per_node=max(args.gpus, 1),
        gpus_per_node=args.gpus,
        cpus_per_task=args.cpus,
        timeout_min=args.time,
        slurm_signal_delay_s=_SIGNAL_DELAY,
        **({"slurm_partition": args.partition} if args.partition else {}),
    )
    return executor.submit(job)


def run(args: argparse.Namespace) -> None:
    """Submit the command, and on this machine wait for it."""
    if not args.command or args.command[0] not in _COMMANDS:
        raise UserError(f"detr-d2 launch {args.cluster} needs a command: add one of {', '.join(_COMMANDS)}, and flags.")
    if args.cluster == "local" and args.nodes > 1:
        raise UserError("--nodes counts machines of Slurm: leave it out with local.")
    job = submit(Job(tuple(args.command)), args)
    print(f"Submitted job {job.job_id}. Its log: {job.paths.stdout}")
    if args.cluster == "local":
        job.result()


class _Launch(Command):
    """Command whose flags end where another command begins."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if arguments is None else arguments)
        # The value of a flag may be the name of a command, too.
        named = (i for i, word in enumerate(words) if word in COMMANDS and not words[i - 1].startswith("--"))
        first = next(named, len(words))
        # argparse would take the other command's flags for its own.
        args = self.make_parser().parse(words[:first])
        args.command = words[first:]
        return exit_code(lambda: self.run(args))


main = _Launch("launch", __doc__, _add_flags, run)
