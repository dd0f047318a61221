"""The order of images and random numbers of the training loader, compared with Detectron2's loader."""

import multiprocessing
import os
import random
import signal
import subprocess
from itertools import chain

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from detr_d2.data.training_loader import TrainingLoader

RECORDS = [
    {"image_id": i, "width": 40 + 20 * (i % 3), "height": 60, "annotations": [{"category_id": i % 4}]}
    for i in range(11)
]


def sample(record: dict) -> dict:
    """Return the record with numbers from all generators."""
    draws = (random.random(), np.random.rand(), torch.rand(()).item())
    return {**record, "draws": draws, "process": os.getpid(), "is_last": False}


def last_sample(record: dict) -> dict:
    return {**sample(record), "is_last": True}


@pytest.fixture
def make_loader(make_cfg, monkeypatch):
    """Return a function that makes the loader of one of several processes."""

    def make(*options, rank: int = 0, processes: int = 1, records=RECORDS, mapper=sample) -> TrainingLoader:
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: processes)
        monkeypatch.setattr(comm, "shared_random_seed", lambda: random.SystemRandom().randrange(2**31))
        cfg = make_cfg("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4, "SEED", 5, *options)
        return TrainingLoader(cfg, records, mapper)

    return make


def take(loader: TrainingLoader, count: int, key: str = "image_id") -> list[list]:
    """Return a value of the samples of the first batches."""
    return [[x[key] for x in batch] for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize("grouping", [True, False])
def test_order_is_detectron2s(make_loader, grouping):
    loader = make_loader("DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    sampler = TrainingSampler(len(RECORDS), seed=5)
    reference = build_detection_train_loader(
        RECORDS, mapper=dict, sampler=sampler, total_batch_size=4, aspect_ratio_grouping=grouping
    )
    assert take(loader, 12) == take(reference, 12)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.9),
    ],
    ids=["all", "repeated"],
)
def test_any_number_of_processes_continues_the_order(make_loader, processes, options):
    """With the same random numbers for each sample, from any iteration on."""
    expected = make_loader(*options)
    draws, images = take(expected, 9, "draws"), take(expected, 9)
    shares = []
    for rank in range(processes):
        loader = make_loader(*options, "SEED", 77, rank=rank, processes=processes)
        loader.start(4, seed=5)
        shares.append((take(loader, 5), take(loader, 5, "draws")))
    for found, joint in zip(zip(*shares, strict=True), (images, draws), strict=True):
        assert [list(chain(*batch)) for batch in zip(*found, strict=True)] == joint[4:]


def test_workers_load_the_same(make_loader):
    alone, shared = make_loader(), make_loader("DATALOADER.NUM_WORKERS", 2)
    batches = [x for x, _ in zip(shared, range(6), strict=False)]
    assert len({x["process"] for batch in batches for x in batch}) == 2
    assert [[x["draws"] for x in batch] for batch in batches] == take(alone, 6, "draws")
    assert take(make_loader("SEED", 6), 6, "draws") != take(alone, 6, "draws")
    assert len({x for batch in batches for sample in batch for x in sample["draws"]}) == 6 * 4 * 3


def test_images_of_unknown_size_have_batches_of_their_own(make_loader):
    records = [*RECORDS, *({"image_id": i, "annotations": []} for i in range(100, 104))]
    for batch in take(make_loader(records=records), 12):
        assert {x >= 100 for x in batch} in ({True}, {False})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_mapper_begins_with_an_iteration(make_cfg, workers):
    cfg = make_cfg("DATALOADER.NUM_WORKERS", workers, "DATALOADER.ASPECT_RATIO_GROUPING", False)
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 4, "SEED", 5])
    loader = TrainingLoader(cfg, RECORDS, sample, last_mapper=last_sample, last_from=3)
    assert take(loader, 5, "is_last") == [[False] * 4] * 3 + [[True] * 4] * 2
    without = TrainingLoader(cfg, RECORDS, sample)
    assert take(loader, 5, "draws") == take(without, 5, "draws")
    loader.start(2, seed=5)
    assert take(loader, 2, "is_last") == [[False] * 4, [True] * 4]


def test_records_that_can_not_be_mapped_are_replaced(make_loader):
    def only_even(record):
        return None if record["image_id"] % 2 else record

    replaced = take(make_loader(mapper=only_even), 6)
    assert all(x % 2 == 0 for batch in replaced for x in batch)
    for batch, original in zip(replaced, take(make_loader(), 6), strict=True):
        assert all(x == y for x, y in zip(batch, original, strict=True) if y % 2 == 0)
    assert take(make_loader(mapper=only_even), 6) == replaced


def signalled(record: dict) -> dict:
    """Send this worker what the processes of a job receive."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        subprocess.run(["kill", f"-{number}", str(os.getpid())], check=True)
    return {"survived": True}


def test_workers_survive_the_signals_that_end_a_job(make_loader):
    """The process that they work for ends them, when it has saved a checkpoint."""
    loader = make_loader("DATALOADER.NUM_WORKERS", 1, mapper=signalled)
    assert take(loader, 1, "survived") == [[True] * 4]


def test_the_process_that_they_work_for_ends_workers(make_loader):
    """As one that exits does: it would wait for them forever."""
    batches = iter(make_loader("DATALOADER.NUM_WORKERS", 1))
    worker = next(batches)[0]["process"]
    (process,) = (x for x in multiprocessing.active_children() if x.pid == worker)
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def test_random_seed(make_loader):
    """Without a seed in the config, two runs have different orders."""
    assert take(make_loader("SEED", -1), 12) != take(make_loader("SEED", -1), 12)
