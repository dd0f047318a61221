"""Recognition of torchrun, srun and flags by the variables that they set, and contradictions between them."""

import argparse

import pytest

from detr_d2.engine.environments import default_url, recognize
from detr_d2.utils.errors import UserError

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "0"},
    **{"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
}
# As srun sets them for task 5 of 8, on the second of two nodes.
SRUN = {
    **{"SLURM_JOB_ID": "1000", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    **{"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "2"},
    **{"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_JOB_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
}
ONE_TASK_PER_NODE = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


def make_args(**flags) -> argparse.Namespace:
    return argparse.Namespace(**{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": None, **flags})


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({}, {}, {"launcher": "itself", "world_size": 1, "spawned": 0}),
        ({}, {"num_gpus": 0}, {"world_size": 1, "spawned": 0}),
        ({}, {"num_gpus": 2}, {"world_size": 2, "spawned": 2, "local_size": 2, "rank": 0, "url": default_url()}),
        (
            {},
            {"num_gpus": 4, "num_machines": 3, "machine_rank": 2, "dist_url": "tcp://a:1"},
            {"world_size": 12, "rank": 8, "spawned": 4, "url": "tcp://a:1", "launcher": "flags"},
        ),
        (
            TORCHRUN,
            {},
            {"launcher": "torchrun", "rank": 5, "world_size": 8, "local_rank": 1, "local_size": 4, "url": "env://"},
        ),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}, {}, {"restarted": True, "spawned": 0}),
        # The rank of a machine, for a torchrun that is still to come.
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, {}, {"launcher": "itself"}),
        (
            SRUN,
            {},
            {"launcher": "srun", "rank": 5, "world_size": 8, "local_rank": 1, "local_size": 4, "spawned": 0},
        ),
        (SRUN, {}, {"url": "tcp://gpu03:31002", "restarted": False}),
        (SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "5"}, {}, {"url": "tcp://a:5"}),
        (SRUN | {"SLURM_RESTART_COUNT": "2"}, {}, {"restarted": True}),
        (
            ONE_TASK_PER_NODE,
            {"num_gpus": 4},
            {"launcher": "srun", "rank": 4, "world_size": 8, "spawned": 4, "local_size": 4, "local_rank": 0},
        ),
        (ONE_TASK_PER_NODE, {}, {"rank": 1, "world_size": 2, "local_size": 1, "local_rank": 0}),
        # A batch script, and a step of one task.
        ({k: v for k, v in SRUN.items() if "STEP" not in k}, {"num_gpus": 2}, {"launcher": "flags", "spawned": 2}),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, {"num_gpus": 2}, {"launcher": "flags"}),
        # Detectron2's flags, from the variables of srun.
        (
            ONE_TASK_PER_NODE,
            {"num_gpus": 4, "num_machines": 2, "machine_rank": 1, "dist_url": "tcp://a:1"},
            {"launcher": "flags", "rank": 4, "world_size": 8},
        ),
    ],
)
def test_start(environ, flags, expected):
    start = recognize(make_args(**flags), environ)
    assert {name: getattr(start, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu[03-05,9],other", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("a-1,b[2-3]", "a-1"),
        ("rack[1-2]-gpu", "rack1-gpu"),
    ],
)
def test_first_host_of_a_list(hosts, first):
    assert recognize(make_args(), SRUN | {"SLURM_STEP_NODELIST": hosts}).url == f"tcp://{first}:31002"


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (TORCHRUN, {"num_gpus": 8}, "torchrun has started process 5 of 8.*leave out --num-gpus"),
        (TORCHRUN, {"num_machines": 2}, "torchrun has started process 5 of 8.*leave out --num-gpus"),
        (SRUN, {"num_gpus": 4}, "task 5 of 8 on 2 nodes, and --num-gpus 4 .*--ntasks-per-node 1"),
        (SRUN, {"num_machines": 2}, "srun has started task 5 of 8 on 2 nodes, and --num-machines is 2: leave out"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "5,3"}, {}, "not have equally many: set --ntasks-per-node"),
        ({}, {"num_machines": 2}, "--num-machines 2 needs an address .*--dist-url tcp://HOST:PORT"),
        ({}, {"num_machines": 2, "dist_url": "auto"}, "--num-machines 2 needs an address"),
        ({}, {"num_machines": 2, "dist_url": default_url()}, "--num-machines 2 needs an address"),
    ],
)
def test_contradictions(environ, flags, message):
    with pytest.raises(UserError, match=message):
        recognize(make_args(**flags), environ)


def test_description_for_the_log():
    start = recognize(make_args(), TORCHRUN)
    assert str(start) == "Started by torchrun: process 5 of 8, 1 of 4 on this machine, which meet at env://."
