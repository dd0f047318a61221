"""Exported files in the place of checkpoints: for prediction, for evaluation, and as a faster backend."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from detr_d2.config import load_config
from detr_d2.config.checks import check_class_thresholds
from detr_d2.export.exported_model import ExportedModel
from detr_d2.export.exporting import export_model
from detr_d2.export.formats import FORMATS, check_runtime, is_exported
from detr_d2.export.info import package_version
from detr_d2.inference import Predictor, inference_options, optimize_for_inference, prediction_config, with_tiles
from detr_d2.inference.predictor import Categories
from detr_d2.modeling import Detr
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

_FORMATS = {"openvino": "openvino", "onnxruntime": "onnx"}


def build_predictor(
    config_file: str, options: list[str], *, min_score: float | None = 0.0, trust: bool = False
) -> tuple[Predictor, CfgNode]:
    """Build the predictor of ``MODEL.WEIGHTS``, a checkpoint or an exported file, and return it with its config.

    An exported file needs no config file. Its metadata replaces what the config says. The model of a checkpoint leaves
    out detections with a score below ``min_score``, None: that of :func:`default_score`. ``trust`` is that of
    :func:`~detr_d2.config.load_config`.

    Raises:
        UserError: as :func:`~detr_d2.inference.prediction_config` and :class:`ExportedModel`.
    """
    given = dict(zip(options[::2], options[1::2], strict=False))
    if not is_exported(given.get("MODEL.WEIGHTS", "")):
        if not config_file:
            raise UserError("--config-file is missing: only exported models (docs/EXPORT.md) predict without it.")
        cfg = prediction_config(config_file, options, trust=trust)
        min_score = default_score(cfg) if min_score is None else min_score
        cfg.MODEL.DETR.TEST.SCORE_THRESHOLD = max(cfg.MODEL.DETR.TEST.SCORE_THRESHOLD, min_score)
        return Predictor.from_config(cfg, prepare_for_inference), cfg
    cfg = load_config(config_file, options, trust=trust)
    model = use_exported(cfg)
    categories = Categories(model.info.class_names, model.info.category_ids)
    return Predictor(*with_tiles(model, cfg), model.info.image_format, categories, model.info.file_channels), cfg


def default_score(cfg: CfgNode) -> float:
    """Return the minimum score of detections that are shown: 0.5, or 0 if the classes have thresholds of their own."""
    return 0.0 if cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS else 0.5


def use_exported(cfg: CfgNode) -> ExportedModel:
    """Open the exported file ``MODEL.WEIGHTS``, and set the keys of ``cfg``, in place, that it was exported with."""
    model = ExportedModel(cfg.MODEL.WEIGHTS, cfg.MODEL.DETR.TEST.PRECISION, cfg.MODEL.DETR.TEST.NMS_THRESHOLD)
    info = model.info
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.INPUT.FORMAT, cfg.INPUT.FAST_RESIZE_TEST = info.image_format, info.fast_resize
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = info.min_size, info.max_size
    cfg.INPUT.CHANNELS = info.file_channels
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(info.pixel_mean), list(info.pixel_std)
    cfg.MODEL.DETR.NUM_CLASSES = len(info.class_names)
    cfg.MODEL.DETR.CLASS_LOSS = info.class_loss
    # Those of the config were calibrated with the file.
    cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS = cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS or model.class_thresholds
    check_class_thresholds(cfg)
    model.class_thresholds = tuple(cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS)
    if was_frozen:
        cfg.freeze()
    return model


def prepare_for_inference(model: Detr, cfg: CfgNode, class_names: Sequence[str] | None) -> nn.Module:
    """Return ``model`` as ``MODEL.DETR.TEST`` says: optimized in PyTorch, or exported and run by another runtime.

    An export is cached in ``~/.cache/detr_d2`` (``XDG_CACHE_HOME``), named after weights and settings.
    """
    backend = cfg.MODEL.DETR.TEST.BACKEND
    if backend == "pytorch":
        return optimize_for_inference(model, **inference_options(cfg))
    kind = FORMATS[_FORMATS[backend]]
    check_runtime(kind)
    class_names = class_names or [f"class {i}" for i in range(cfg.MODEL.DETR.NUM_CLASSES)]
    path = _cache_folder() / f"{_fingerprint(model, cfg, class_names)}{kind.suffix}"
    if not path.is_file():
        logger.info(f"MODEL.DETR.TEST.BACKEND {backend}: exporting the model to {path}, once.")
        path.parent.mkdir(parents=True, exist_ok=True)
        export_model(model, path, cfg=cfg, class_names=class_names, overwrite=True)
    return ExportedModel(path, cfg.MODEL.DETR.TEST.PRECISION)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr_d2" / "exports"


def _fingerprint(model: Detr, cfg: CfgNode, class_names: Sequence[str]) -> str:
    text = f"{cfg.MODEL.dump()}{cfg.INPUT.dump()}{list(class_names)}{package_version()}"
    digest = hashlib.sha256(text.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]
