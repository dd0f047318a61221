"""Uses of the package beyond its public names: what to adapt when the package changes."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detr_d2 import build_optimizer
from detr_d2.checkpoint.architecture import infer_architecture
from detr_d2.checkpoint.conversion import write_checkpoint
from detr_d2.config.checks import check_amp, check_device
from detr_d2.config.loading import find_config, load_config
from detr_d2.criterion import SetCriterion
from detr_d2.criterion.matching import MatchingCost
from detr_d2.engine.step import TrainingStep
from detr_d2.export import ExportedModel, Quantization, prepare_for_inference
from detr_d2.export.quantization import quantize
from detr_d2.modeling.activation_checkpoints import checkpoint_activations
from detr_d2.modeling.compilation import compile_for_training
from detr_d2.structures import Output, Targets

MODELS = {
    "box": "detr_256_6_6_torchvision",
    "dc5": "detr_256_6_6_torchvision_dc5",
    "r101": "detr_256_6_6_torchvision_r101",
    "masks": "detr_segm_256_6_6_torchvision",
    "panoptic": "detr_segm_256_6_6_torchvision_panoptic",
}
"""Configs by the name of the model on the command line."""
RUNTIMES = {
    "onnxruntime": ("onnxruntime", "float32"),
    "onnxruntime-int8": ("onnxruntime", "int8"),
    "openvino": ("openvino", "float32"),
    "openvino-bf16": ("openvino", "bfloat16"),
    "openvino-int8": ("openvino", "int8"),
}
"""Runtimes of exported models, as ``MODEL.DETR.TEST.BACKEND``, and their precision, by the implementation's name."""


def make_config(model: str, options: tuple[str, ...] = (), device: str = "cpu") -> CfgNode:
    """Load the config that all implementations are built after.

    Args:
        model: one of :data:`MODELS`, or the file or name of a config.
        options: config keys and values.
        device: value of ``MODEL.DEVICE``.

    Raises:
        UserError: there is no such key, or no such device.
    """
    cfg = load_config(find_config(MODELS.get(model, model)), list(options))
    cfg.MODEL.WEIGHTS = cfg.MODEL.DETR.FROZEN_WEIGHTS = ""
    cfg.MODEL.DEVICE = device
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        # As in the original, which returns no instance masks in addition to the segments.
        cfg.MODEL.DETR.PANOPTIC.MERGE_AFTER_REMOVAL = False
        cfg.MODEL.DETR.TEST.SCORE_THRESHOLD = cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD
    check_device(cfg)
    check_amp(cfg)
    return cfg


def build(cfg: CfgNode, weights: dict[str, Tensor]) -> nn.Module:
    """Build our model with the weights of the original, in evaluation mode."""
    model = build_model(cfg).eval()
    model.load_state_dict(weights)
    return model


def export(cfg: CfgNode, model: nn.Module, backend: str, precision: str, images: list[Tensor]) -> nn.Module:
    """Export a model, once for each precision of its floating-point numbers, and return what runs the file.

    Args:
        cfg, model: config and model.
        backend, precision: entry of :data:`RUNTIMES`.
        images: those that int8 is calibrated on. Speed does not depend on them.
    """
    cfg = cfg.clone()
    cfg.MODEL.DETR.TEST.BACKEND = backend
    cfg.MODEL.DETR.TEST.PRECISION = "float32" if precision == "int8" else precision
    exported = prepare_for_inference(model, cfg, None)
    if precision != "int8":
        return exported
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / exported.path.name
        quantize(exported, path, Quantization(images, force=True))
        return ExportedModel(path)


@contextmanager
def exported_to_transformers(cfg: CfgNode, weights: dict[str, Tensor]) -> Iterator[str]:
    """Yield a temporary folder with weights in transformers' format.

    Args:
        cfg: config of the model.
        weights: state dict of the original.
    """
    weights = build(cfg, weights).state_dict()
    architecture = infer_architecture(weights) | {
        "MODEL.DETR.NHEADS": cfg.MODEL.DETR.NHEADS,
        "MODEL.RESNETS.RES5_DILATION": cfg.MODEL.RESNETS.RES5_DILATION,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.safetensors")
        write_checkpoint(weights, file, "huggingface", architecture=architecture, labels=None)
        yield folder


def make_training_step(
    cfg: CfgNode,
    model: nn.Module,
    batch: list[dict],
    precision: str,
    *,
    checkpoints: bool = False,
    compiled: bool = False,
) -> Callable[[], float]:
    """Return a function that does a step of our trainer and returns the loss.

    Args:
        cfg, model, batch: config, model and images of the step.
        precision: name of the autocast data type, or "float32".
        checkpoints: True to recompute activations instead of keeping them.
        compiled: True to compile the transformer's layers.
    """
    model.train()
    if compiled or cfg.SOLVER.COMPILE:
        compile_for_training(model.detr.transformer)
    checkpoint_activations(
        model.detr, ("backbone", "transformer") if checkpoints else cfg.SOLVER.ACTIVATION_CHECKPOINTS
    )
    dtype = None if precision == "float32" else getattr(torch, precision)
    trainer = TrainingStep(
        model,
        itertools.repeat(batch),
        build_optimizer(cfg, model),
        dtype=dtype,
        accumulation_steps=cfg.SOLVER.ACCUMULATE,
    )
    trainer.iter = 0

    def step() -> float:
        with EventStorage() as storage:
            trainer.run_step()
        return storage.latest()["total_loss"][0]

    return step


def make_criterion(
    cfg: CfgNode, batch: list[dict], logits: Tensor, boxes: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return functions that compute the matches of all layers, and the sum of all losses.

    Args:
        cfg, batch: config and images with their objects.
        logits: (layers, batch, queries, classes + 1) class logits.
        boxes: (layers, batch, queries, 4) boxes.
    """
    criterion = SetCriterion(cfg).to(cfg.MODEL.DEVICE)
    output = Output(logits, boxes)

    def targets() -> Targets:
        return Targets.from_instances([x["instances"] for x in batch], cfg.MODEL.DEVICE)

    def matching() -> Tensor:
        return criterion.match(output, targets())

    def losses() -> Tensor:
        objects = targets()
        return sum(criterion.losses(output, objects, criterion.match(output, objects))[0].values())

    return matching, losses


def matching_cost(logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """Return the default cost of matching the queries with the objects of one image, shape (queries, objects)."""
    targets = Targets(labels[None], boxes[None], (len(labels),))
    return MatchingCost()(Output(logits[None, None], predicted[None, None]), targets)[0, 0]
