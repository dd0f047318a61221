"""Loader of training batches whose order and random numbers depend on a seed and on the iteration only."""

import math
import operator
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList
from detectron2.data.build import _train_loader_from_config, worker_init_reset_seed
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from detr_d2.utils.seeding import SAMPLE, seed_all

# Signals that end a job beside SIGTERM; not every system has them.
_SIGNALS = tuple(getattr(signal, x) for x in ("SIGUSR1", "SIGUSR2") if hasattr(signal, x))


class TrainingLoader:
    """Infinite iterable over this process's shares of the batches, from the iteration given to :meth:`start` on.

    All processes follow one order of images, that of a sampler of Detectron2, which is divided into batches of
    ``batch_size``: what a batch holds does not depend on the number of processes. With
    ``aspect_ratio_grouping`` its images are all wide or all tall. The random numbers of a sample depend on
    the seed and the sample's position in the order, not on the worker that loads it.

    Args:
        records: dataset records. From a config: ``TrainingLoader(cfg, records, mapper)``.
        mapper: function from a record to a sample, or to None to replace the record by a random other one.
        last_mapper, last_from: mapper of the batches from an iteration on. By default ``mapper`` is that of all.
        batch_size: number of images in a batch of all processes.
        sampler: a training sampler of Detectron2. None: every image once per epoch, in random order.
        aspect_ratio_grouping: True for batches of images that are all wide or all tall.
        num_workers: number of processes that load images; 0: none.
        seed: seed until :meth:`start` is called; see :func:`choose_seed`.
        options: arguments of PyTorch's DataLoader.
    """

    @configurable
    def __init__(
        self,
        records: list[dict],
        mapper: Callable[[dict], dict | None],
        *,
        batch_size: int,
        last_mapper: Callable[[dict], dict | None] | None = None,
        last_from: float = math.inf,
        sampler: Sampler | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int = -1,
        **options,
    ):
        shapes = _shapes(records) if aspect_ratio_grouping else np.zeros(len(records), int)
        sampler = TrainingSampler(len(records)) if sampler is None else sampler
        self.batch_size = batch_size
        self.num_images = len(records)
        self._share = self.batch_size // comm.get_world_size()
        self._order = _SampleOrder(sampler, shapes.tolist(), self.batch_size)
        self._samples = _Samples(DatasetFromList(records, copy=False), mapper, last_mapper, last_from)
        self._loader = DataLoader(
            self._samples,
            sampler=self._order,
            # Single samples, so that all workers load the next batch together.
            collate_fn=operator.itemgetter(0),
            num_workers=num_workers,
            worker_init_fn=init_worker,
            **options,
        )
        self.start(0, choose_seed(seed))

    @classmethod
    def from_config(cls, cfg: CfgNode, records: list[dict], mapper: Callable[[dict], dict | None]) -> dict:
        settings = _train_loader_from_config(cfg, mapper=mapper, dataset=records)
        options = {name: settings[name] for name in ("sampler", "aspect_ratio_grouping", "num_workers")}
        batch_size = settings["total_batch_size"]
        return {"records": records, "mapper": mapper, "batch_size": batch_size, "seed": cfg.SEED, **options}

    def start(self, iteration: int, seed: int) -> None:
        """Set the iteration that the first batch is for, and the seed of the order and of the random numbers."""
        self._order.first_batch = iteration
        self._order.seed = self._samples.seed = seed

    def __iter__(self) -> Iterator[list[dict]]:
        samples = iter(self._loader)
        while True:
            yield list(islice(samples, self._share))


def choose_seed(seed: int) -> int:
    """Return ``seed``, or if that is negative a random one, the same in all processes."""
    return seed if seed >= 0 else comm.shared_random_seed()


def init_worker(worker: int) -> None:
    """Prepare a process of a loader: its own random numbers, and no end before the process that it works for.

    Signals that end a job are sent to all of its processes, and the training still needs its workers to stop.
    """
    worker_init_reset_seed(worker)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A handler can't tell who sent a signal. Not every system can wait for one: there SIGTERM ends a worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(sender: int) -> None:
    """End this process at a SIGTERM of one sender, which is how a process that ends stops those that it started."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    # Any other code would be an error of the loader.
    os._exit(0)


class _SampleOrder(Sampler):
    """Iterable over the samples of this process: iteration, position in the order of all images, and index.

    The batches before ``first_batch`` are replayed without loading anything: three million images per second.
    """

    def __init__(self, sampler: Sampler, shapes: Sequence[int], batch_size: int):
        self.first_batch = self.seed = 0
        self._sampler = sampler
        self._shapes = shapes
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        share = self._batch_size // comm.get_world_size()
        first = comm.get_rank() * share
        for iteration, batch in enumerate(islice(self._batches(), self.first_batch, None), self.first_batch):
            yield from ((iteration, *sample) for sample in batch[first : first + share])

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        waiting = defaultdict(list)
        for sample in enumerate(self._indices()):
            batch = waiting[self._shapes[sample[1]]]
            batch.append(sample)
            if len(batch) == self._batch_size:
                yield batch.copy()
                batch.clear()

    def _indices(self) -> Iterator[int]:
        """Yield the indices that the sampler divides between the processes."""
        self._sampler._seed = self.seed
        return self._sampler._infinite_indices()


class _Samples(Dataset):
    """Mapped records by iteration, position and index; ``last_mapper`` maps those from an iteration on."""

    def __init__(
        self,
        records: Dataset,
        mapper: Callable[[dict], dict | None],
        last_mapper: Callable[[dict], dict | None] | None,
        last_from: float,
    ):
        self.seed = 0
        self._records = records
        self._mapper = mapper
        self._last_mapper = last_mapper
        self._last_from = last_from

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, sample: tuple[int, int, int]) -> dict:
        iteration, position, index = sample
        seed_all(SAMPLE, self.seed, position)
        mapper = self._mapper if iteration < self._last_from else self._last_mapper
        while (mapped := mapper(self._records[index])) is None:
            index = torch.randint(len(self), ()).item()
        return mapped


def _shapes(records: list[dict]) -> np.ndarray:
    """Return 0 for each wide image, 1 for each other one, as Detectron2 groups them; 2 for those of unknown size."""
    sizes = np.array([(x.get("width", -1), x.get("height", -1)) for x in records])
    return np.where((sizes < 0).any(axis=1), 2, sizes[:, 0] <= sizes[:, 1])
