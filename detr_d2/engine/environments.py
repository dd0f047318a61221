"""Recognition of how a process was started: by torchrun, by Slurm's srun, or by itself, with Detectron2's flags."""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from detr_d2.utils.errors import UserError

_FLAGS = "--num-gpus, --num-machines and --machine-rank"


class Start(NamedTuple):
    """Number of this process among all of a run, or of those that it has to start."""

    launcher: str
    rank: int = 0  # Of this process, or of the first that it starts.
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    url: str = ""  # Address at which the processes meet, for torch.distributed.
    spawned: int = 0  # Processes to start here; 0: this process is one of the run's.
    restarted: bool = False  # True if an earlier attempt was interrupted, which is to be resumed.

    def __str__(self) -> str:
        if self.world_size == 1:
            return f"Started by {self.launcher}: one process."
        return (
            f"Started by {self.launcher}: process {self.rank} of {self.world_size}, {self.local_rank} of "
            f"{self.local_size} on this machine, which meet at {self.url}."
        )


def recognize(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Start:
    """Return how this process was started, from the variables of the environment, else from the flags.

    Raises:
        UserError: the flags contradict the environment or each other.
    """
    return _from_torchrun(args, environ) or _from_srun(args, environ) or _from_flags(args, environ)


def _from_torchrun(args: argparse.Namespace, environ: Mapping[str, str]) -> Start | None:
    # All of them: some systems set the rank of the machine for a torchrun that is still to come.
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(environ.get(name) for name in names):
        return None
    rank, world_size, local_rank = (int(environ[name]) for name in names[:3])
    if args.num_gpus > 1 or args.num_machines > 1:
        raise UserError(
            f"torchrun has started process {rank} of {world_size}, and the flags ask for more: leave out {_FLAGS}, or "
            "start without torchrun."
        )
    restarted = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    local_size = int(environ.get("LOCAL_WORLD_SIZE", world_size))
    launcher = "submitit" if "SUBMITIT_EXECUTOR" in environ else "torchrun"
    return Start(launcher, rank, world_size, local_rank, local_size, "env://", restarted=restarted)


def _from_srun(args: argparse.Namespace, environ: Mapping[str, str]) -> Start | None:
    # Only srun sets the number of a step: a batch script starts one process, without it.
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", 1)))
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ or tasks == 1:
        return None
    if args.num_machines == tasks:
        # Each task was told by flags which machine it is.
        return None
    rank, nodes = int(environ["SLURM_PROCID"]), int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", 1)))
    started = f"srun has started task {rank} of {tasks} on {nodes} nodes"
    if args.num_machines > 1:
        raise UserError(f"{started}, and --num-machines is {args.num_machines}: leave out {_FLAGS}.")
    url = f"tcp://{environ.get('MASTER_ADDR') or _first_host(environ)}:{environ.get('MASTER_PORT') or _port(environ)}"
    restarted = int(environ.get("SLURM_RESTART_COUNT", 0)) > 0
    if args.num_gpus > 1:
        if tasks != nodes:
            raise UserError(
                f"{started}, and --num-gpus {args.num_gpus} starts as many processes in each task: run one task per "
                "node (--ntasks-per-node 1), or one per GPU without --num-gpus."
            )
        world_size, first = tasks * args.num_gpus, rank * args.num_gpus
        return Start("srun", first, world_size, 0, args.num_gpus, url, spawned=args.num_gpus, restarted=restarted)
    if tasks % nodes or "," in environ.get("SLURM_STEP_TASKS_PER_NODE", ""):
        raise UserError(f"{started}, which do not have equally many: set --ntasks-per-node.")
    local_rank = int(environ.get("SLURM_LOCALID", rank % (tasks // nodes)))
    return Start("srun", rank, tasks, local_rank, tasks // nodes, url, restarted=restarted)


def _first_host(environ: Mapping[str, str]) -> str:
    """Return the first host of a list such as ``gpu[03-05,9],other``, as Slurm abbreviates it."""
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    prefix, first, rest = re.match(r"([^\[,]*)(?:\[([^\-,\]]+)[^\]]*\]([^,]*))?", hosts).groups(default="")
    return prefix + first + rest


def _port(environ: Mapping[str, str]) -> int:
    """Return a port that is the same in all tasks of a step, and another one in other jobs."""
    return 20000 + (int(environ.get("SLURM_JOB_ID", 0)) * 31 + int(environ["SLURM_STEP_ID"])) % 20000


def _from_flags(args: argparse.Namespace, environ: Mapping[str, str]) -> Start:
    machines, rank, processes = args.num_machines, args.machine_rank, args.num_gpus
    if machines < 1:
        raise UserError(f"--num-machines is {machines}: give 1 or more.")
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank is {rank}: give each of the {machines} machines its own number, 0 or more.")
    # With --num-gpus 0 on several machines, each would train independently.
    if processes < 0 or (processes == 0 and machines > 1):
        raise UserError(
            f"--num-gpus is {processes}: give the number of GPUs, or on a CPU of processes, of each machine."
        )
    url = args.dist_url
    if machines > 1 and url in (None, "auto", default_url()):
        raise UserError(
            f"--num-machines {machines} needs an address at which the machines meet: give all of them "
            "--dist-url tcp://HOST:PORT, with the name of the first machine and a free port there."
        )
    restarted = int(environ.get("SLURM_RESTART_COUNT", 0)) > 0
    world_size = machines * processes
    if world_size <= 1:
        return Start("itself", restarted=restarted)
    url = default_url() if url is None else url
    return Start("flags", rank * processes, world_size, 0, processes, url, spawned=processes, restarted=restarted)


def default_url() -> str:
    """Return an address of this machine with one port per user, as Detectron2 chooses it.

    A process left behind is noticed by the port it occupies.
    """
    return f"tcp://127.0.0.1:{2**15 + 2**14 + hash(os.getuid() if sys.platform != 'win32' else 1) % 2**14}"
