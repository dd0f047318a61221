"""Training and evaluation of LazyConfigs: the parts are instantiated, not built from keys."""

import argparse
import weakref
from collections.abc import Iterable

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.config import choice, find_config
from detr_d2.config.checks import AMP_DTYPES, check_device_name
from detr_d2.config.lazy import check_parts_given, load_lazy_config
from detr_d2.data.checks import check_registered
from detr_d2.engine.console import evaluate_dataset
from detr_d2.engine.hooks import BestCheckpoint, WeightAverage
from detr_d2.engine.interruption import StopOnSignal
from detr_d2.engine.launching import start_run
from detr_d2.engine.progressive import ProgressiveSize
from detr_d2.engine.resuming import ExactResume
from detr_d2.engine.step import TrainingStep
from detr_d2.engine.tracking import Tracking
from detr_d2.engine.trainer import LOG_PERIOD, Trainer, distribute, folded_writers, share_buffers
from detr_d2.utils.errors import UserError

_DATA_FLAGS = [f"{split}_{kind}" for split in ("train", "val") for kind in ("json", "images", "panoptic", "data")]


def setup_lazy(args: argparse.Namespace) -> DictConfig:
    """Load the LazyConfig of ``args``, check what is known before anything is built, and set up the log."""
    if given := [name for name in _DATA_FLAGS if getattr(args, name, None)]:
        raise UserError(
            f"--{given[0].replace('_', '-')} goes with YAML configs: in a LazyConfig register the dataset, and set "
            "dataloader.train.records.names and dataloader.test.dataset.dataset_name; see docs/LAZYCONFIG.md."
        )
    overrides, output_dir = list(args.opts), getattr(args, "output_dir", None)
    if output_dir:
        # What the parser makes of --output.
        overrides = overrides[: -len(("OUTPUT_DIR", output_dir))]
    # Detectron2's setup logs the content of the file.
    args.config_file = find_config(args.config_file)
    cfg = load_lazy_config(args.config_file, overrides, trust=getattr(args, "trust", False))
    check_parts_given(cfg, args.config_file)
    if output_dir:
        cfg.train.output_dir = output_dir
    check_device_name(cfg.train.device, "train.device", "train.device=cpu")
    start_run(cfg, args, ("train.output_dir", cfg.train.output_dir), cfg.train.device, ())
    return cfg


class LazyTrainer(Trainer):
    """Trainer whose parts a LazyConfig describes, with the step, the hooks and the checkpoints of :class:`Trainer`."""

    def __init__(self, cfg: DictConfig):
        TrainerBase.__init__(self)
        train, world_size = cfg.train, comm.get_world_size()
        if cfg.dataloader.train.get("batch_size", world_size) % world_size:
            raise UserError(
                f"dataloader.train.batch_size {cfg.dataloader.train.batch_size} is not a multiple of the number of "
                f"processes, {world_size}: every process takes an equal share of the batch."
            )
        check_lazy_datasets(cfg, train=True)
        self.tracking = Tracking.from_lazy_config(cfg)
        model = instantiate(cfg.model).to(train.device)
        average = WeightAverage(model, train.ema.decay) if train.ema.enabled else None
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        # The config describes the run, and is not to hold its model.
        cfg.optimizer.params.model = None
        loader = instantiate(cfg.dataloader.train)
        model = distribute(model)
        self._trainer = TrainingStep(
            model,
            loader,
            optimizer,
            dtype=choice(AMP_DTYPES, "train.amp.dtype", train.amp.dtype) if train.amp.enabled else None,
            accumulation_steps=train.accumulate,
            log_period=1 if train.device == "cpu" else LOG_PERIOD,
            progressive_size=ProgressiveSize.of_training(**train.progressive, max_iter=train.max_iter),
        )
        self.checkpointer = DetrCheckpointer(
            model,
            train.output_dir,
            class_names=lazy_class_names(cfg),
            frozen_weights=train.frozen_weights,
            trainer=weakref.proxy(self),
        )
        self.cfg = cfg
        self.start_iter = 0
        self.max_iter = train.max_iter
        self.checkpoint_period = train.checkpointer.period
        self.expected_results = ()
        self._stopped = False
        if average is not None:
            self.checkpointer.averaged = average.averaged.module
            self.register_hooks([average])
        self.register_hooks([*self.build_hooks(), ExactResume(train.seed)])

    def resume_or_load(self, resume: bool = True) -> None:
        self.checkpointer.resume_or_load(self.cfg.train.init_checkpoint, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase]:
        train, is_main = self.cfg.train, comm.is_main_process()
        built = [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(self.cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(self.checkpointer, **train.checkpointer) if is_main else None,
            StopOnSignal(),
            hooks.EvalHook(train.eval_period, self._evaluate),
            BestCheckpoint(train.eval_period, self.checkpointer, **train.best) if train.best.metric else None,
            hooks.PeriodicWriter(self.build_writers(), period=train.log_period) if is_main else None,
            self.tracking,
        ]
        return [x for x in built if x is not None]

    def build_writers(self) -> Iterable[EventWriter]:
        return folded_writers(self.cfg.train.output_dir, self.max_iter)

    def _evaluate(self) -> dict:
        self._last_eval_results = evaluate_lazy(self.cfg, self.trained_model)
        if self.tracking.num_images and "test" in self.cfg.dataloader:
            loader = instantiate(self.cfg.dataloader.test)
            self.tracking.add_predictions(self.trained_model, loader, lazy_class_names(self.cfg))
        return self._last_eval_results


def evaluate_lazy(cfg: DictConfig, model: nn.Module) -> dict:
    """Evaluate a model with the test loader and the evaluator of a LazyConfig; {} if it has no evaluator."""
    if "evaluator" not in cfg.dataloader:
        return {}
    share_buffers(model)
    evaluator = instantiate(cfg.dataloader.evaluator)
    name = next(iter(_names(cfg, "test.dataset.dataset_name")), "the test data")
    return evaluate_dataset(model, instantiate(cfg.dataloader.test), evaluator, name)


def evaluate_checkpoint(cfg: DictConfig, resume: bool = False) -> dict:
    """Evaluate the weights of ``train.init_checkpoint``, or with ``resume`` those of the last checkpoint of the run."""
    if not cfg.train.init_checkpoint and not resume:
        raise UserError("There are no weights to evaluate: add train.init_checkpoint=CHECKPOINT.")
    check_lazy_datasets(cfg, train=False)
    model = instantiate(cfg.model).to(cfg.train.device)
    options = {"class_names": lazy_class_names(cfg), "allow_new_head": False}
    DetrCheckpointer(model, cfg.train.output_dir, **options).resume_or_load(cfg.train.init_checkpoint, resume=resume)
    return evaluate_lazy(cfg, model)


def check_lazy_datasets(cfg: DictConfig, train: bool) -> None:
    """Check the registered datasets of a LazyConfig whose loaders are like those in ``configs/lazy/common/coco.py``."""
    names = dict.fromkeys(_names(cfg, "test.dataset.dataset_name"), False)
    if train:
        names |= dict.fromkeys(_names(cfg, "train.records.names"), True)
    network = cfg.model.get("network", {})
    sizes = [network.get("num_classes"), network.get("num_queries")]
    if names and None not in sizes:
        check_registered(names, *sizes, masks=network.get("mask_head") is not None)


def lazy_class_names(cfg: DictConfig) -> list[str] | None:
    """Return the class names of the first dataset of a LazyConfig; None if its loaders do not name one."""
    for key in ("train.records.names", "test.dataset.dataset_name"):
        for name in _names(cfg, key):
            return MetadataCatalog.get(name).get("thing_classes")
    return None


def _names(cfg: DictConfig, key: str) -> list[str]:
    value = OmegaConf.select(cfg.dataloader, key)
    return [value] if isinstance(value, str) else list(value or ())
