"""Detectron2's default trainer with DETR's data, optimizer and checkpoints."""

import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, default_writers, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from fvcore.common.history_buffer import HistoryBuffer
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.config import check_training_config, choice, log_pixel_warnings
from detr_d2.config.checks import amp_dtype
from detr_d2.data import (
    DetrDatasetMapper,
    MixingMapper,
    build_training_mapper,
    check_datasets,
    load_test_records,
    load_training_records,
)
from detr_d2.data.training_loader import TrainingLoader, init_worker
from detr_d2.engine.console import FoldedMetricPrinter, evaluate_dataset
from detr_d2.engine.hooks import BestCheckpoint, WeightAverage
from detr_d2.engine.interruption import StopOnSignal
from detr_d2.engine.optimizer import build_optimizer
from detr_d2.engine.progressive import ProgressiveSize
from detr_d2.engine.resuming import ExactResume
from detr_d2.engine.step import TrainingStep
from detr_d2.engine.tracking import Tracking
from detr_d2.evaluation import build_evaluator, check_evaluation
from detr_d2.inference import with_tiles
from detr_d2.modeling.activation_checkpoints import checkpoint_activations
from detr_d2.modeling.compilation import compile_for_training
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

# Steps between copies of losses from a GPU to the host: as many as between Detectron2's log lines.
LOG_PERIOD = 20
# Values of every metric that are in memory. Detectron2 keeps a million, which are gigabytes after weeks of training.
_HISTORY_LENGTH = 10_000


class Trainer(DefaultTrainer):
    """Trainer and evaluator of the model that a config describes.

    Datasets that do not go with the config are refused before the model is built.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own constructor wraps models for GPUs only, and loads checkpoints that do not fit.
        TrainerBase.__init__(self)
        if not logging.getLogger("detr_d2").isEnabledFor(logging.INFO):
            setup_logger(name="detr_d2")
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        check_training_config(cfg, comm.get_world_size())
        check_datasets(cfg)
        for name in cfg.DATASETS.TEST:
            check_evaluation(cfg, name)
        self.tracking = Tracking.from_config(cfg)
        model = self.build_model(cfg)
        average = WeightAverage(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        if cfg.SOLVER.COMPILE:
            compile_for_training(model.detr.transformer)
        checkpoint_activations(model.detr, cfg.SOLVER.ACTIVATION_CHECKPOINTS)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = distribute(model)
        self._trainer = TrainingStep(
            model,
            loader,
            optimizer,
            dtype=amp_dtype(cfg),
            accumulation_steps=cfg.SOLVER.ACCUMULATE,
            log_period=1 if cfg.MODEL.DEVICE == "cpu" else LOG_PERIOD,
            progressive_size=ProgressiveSize.of_training(
                cfg.INPUT.PROGRESSIVE.START, cfg.INPUT.PROGRESSIVE.UNTIL, cfg.SOLVER.MAX_ITER
            ),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetrCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            class_names=class_names(cfg.DATASETS.TRAIN),
            **loading_options(cfg),
            frozen_weights=cfg.MODEL.DETR.FROZEN_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.checkpoint_period = cfg.SOLVER.CHECKPOINT_PERIOD
        self.expected_results = cfg.TEST.EXPECTED_RESULTS
        self._stopped = False
        if average is not None:
            self.checkpointer.averaged = average.averaged.module
            self.register_hooks([average])
        self.register_hooks([*self.build_hooks(), ExactResume(cfg.SEED)])

    @property
    def trained_model(self) -> nn.Module:
        """The model that is evaluated and saved: with averaged weights, if there are."""
        averaged = self.checkpointer.averaged
        return self.checkpointer.model if averaged is None else averaged

    def train(self) -> dict | None:
        """Train, and return the results of the last evaluation."""
        with self.tracking:
            return self._train()

    def _train(self) -> dict | None:
        logger.info(f"Starting training from iteration {self.start_iter}")
        self.iter = self.start_iter
        # The loop of TrainerBase.train, which can't end early.
        with EventStorage(self.start_iter) as self.storage:
            self.storage.histories().default_factory = partial(HistoryBuffer, max_length=_HISTORY_LENGTH)
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self._stopped:
                        break
                else:
                    self.iter += 1
            except UserError:
                # Reported once, without a traceback, by the command.
                raise
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self._write_last_losses()
                self.after_train()
                self._trainer.end_loading()
        # A run that was killed after its last checkpoint and before the final one has no step left to write it after.
        done = self.start_iter >= self.max_iter
        if done:
            self.iter = self.start_iter - 1
        if (self._stopped or done) and comm.is_main_process():
            self.checkpointer.save("model_final", iteration=self.iter)
        results = getattr(self, "_last_eval_results", None)
        if self.expected_results and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    def _write_last_losses(self) -> None:
        """Write the losses of the steps since the log was last written, which a training that ends early would lose."""
        # An error of one process would leave it waiting for the others.
        if self._stopped or comm.get_world_size() == 1:
            with suppress(FloatingPointError):
                self._trainer.loss_log.write()

    def stop(self) -> None:
        """End the training after this iteration; all processes call this together."""
        self._stopped = True

    def run_step(self) -> None:
        try:
            super().run_step()
            # Saved weights must be known to be finite, and the last writers need all losses.
            done = self.iter + 1
            if done == self.max_iter or done % self.checkpoint_period == 0:
                self._trainer.loss_log.write()
        except FloatingPointError as e:
            rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
            message = f"Found in iteration {self.iter}, at learning rates {rates}: {e}"
            first = self._trainer.loss_log.first_bad_iteration()
            if first is not None:
                message += f" The loss became infinite or NaN in iteration {first}."
            raise FloatingPointError(message) from e

    def build_hooks(self) -> list[HookBase]:
        solver, test = self.cfg.SOLVER, self.cfg.TEST
        built = [x for x in super().build_hooks() if x is not None]
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.PeriodicCheckpointer):
                built[i] = hooks.PeriodicCheckpointer(
                    self.checkpointer, solver.CHECKPOINT_PERIOD, max_to_keep=solver.CHECKPOINTS_KEPT or None
                )
            elif isinstance(hook, hooks.EvalHook):
                built[i] = hooks.EvalHook(test.EVAL_PERIOD, self._evaluate)
                if test.BEST_METRIC:
                    best = BestCheckpoint(test.EVAL_PERIOD, self.checkpointer, test.BEST_METRIC, test.PATIENCE)
                    built.insert(i + 1, best)
        # A stopped run does not wait for an evaluation.
        evaluation = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        return [*built[:evaluation], StopOnSignal(), *built[evaluation:], self.tracking]

    def _evaluate(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self.trained_model)
        if self.tracking.num_images and self.cfg.DATASETS.TEST:
            model = with_tiles(self.trained_model, self.cfg)[0]
            loader = self.build_test_loader(self.cfg, self.cfg.DATASETS.TEST[0])
            self.tracking.add_predictions(model, loader, class_names(self.cfg.DATASETS.TEST))
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        """Return the writers of the console and of metrics.json; LOGGING.TRACKERS has further ones."""
        return folded_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        log_pixel_warnings(cfg)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        records = load_training_records(cfg)
        mapper = build_training_mapper(cfg, records)
        # Copies to a GPU are asynchronous only from pinned memory.
        pinned = cfg.MODEL.DEVICE.startswith("cuda")
        if isinstance(records, list):
            unmixed = {}
            if isinstance(mapper, MixingMapper) and cfg.INPUT.MIX_UNTIL < 1:
                last_from = round(cfg.INPUT.MIX_UNTIL * cfg.SOLVER.MAX_ITER)
                unmixed = {"last_mapper": mapper.unmixed(), "last_from": last_from}
            return TrainingLoader(cfg, records, mapper, pin_memory=pinned, **unmixed)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=records, pin_memory=pinned)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        # Tiles are cut from images that are not resized yet.
        options = {"augmentations": []} if cfg.MODEL.DETR.TEST.TILES else {}
        loader = build_detection_test_loader(
            load_test_records(dataset_name, cfg.TEST.BATCH_SIZE),
            mapper=DetrDatasetMapper(cfg, is_train=False, **options),
            batch_size=cfg.TEST.BATCH_SIZE,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        loader.worker_init_fn = init_worker
        return loader

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None) -> dict:
        share_buffers(model)
        model = with_tiles(model, cfg)[0]
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        if given is not None and len(given) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(given)} evaluators for the {len(cfg.DATASETS.TEST)} datasets of DATASETS.TEST")
        results = {}
        for i, name in enumerate(cfg.DATASETS.TEST):
            loader = cls.build_test_loader(cfg, name)
            evaluator = cls.build_evaluator(cfg, name) if given is None else given[i]
            results[name] = evaluate_dataset(model, loader, evaluator, name)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))


def folded_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """Return Detectron2's writers except TensorBoard's; the one for the console folds the losses of all layers."""
    writers = [x for x in default_writers(output_dir, max_iter) if not isinstance(x, TensorboardXWriter)]
    return [FoldedMetricPrinter(max_iter) if isinstance(x, CommonMetricPrinter) else x for x in writers]


def distribute(model: nn.Module) -> nn.Module:
    """Average the gradients of ``model`` over the processes, if there are several; on GPUs or CPUs."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    devices = [comm.get_local_rank()] if on_gpu else None
    model = DistributedDataParallel(model, device_ids=devices)
    # share_buffers does it, and not in every pass. Newer versions of PyTorch warn of the argument of this name.
    model.broadcast_buffers = False
    return model


def share_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process, which checkpoints hold: trained batch norms differ between processes."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def class_names(datasets: tuple[str, ...]) -> list[str] | None:
    """Return the class names of the first dataset, in the order of the class head's rows."""
    return MetadataCatalog.get(datasets[0]).get("thing_classes") if datasets else None


def loading_options(cfg: CfgNode) -> dict[str, bool]:
    """Return the arguments of :class:`DetrCheckpointer` that ``MODEL.DETR.LOAD`` stands for."""
    load = cfg.MODEL.DETR.LOAD
    return {
        "resize_queries": choice(_LOAD_QUERIES, "MODEL.DETR.LOAD.QUERIES", load.QUERIES),
        "classes_by_name": choice(_LOAD_CLASSES, "MODEL.DETR.LOAD.CLASSES", load.CLASSES),
    }


_LOAD_QUERIES = {"strict": False, "resize": True}
_LOAD_CLASSES = {"by_row": False, "by_name": True}
