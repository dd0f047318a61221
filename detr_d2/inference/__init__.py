"""Inference: the predictor, tiles of large images, and a faster model with the same call and the same results."""

from detr_d2.inference.optimization import inference_options, optimize_for_inference
from detr_d2.inference.predictor import Predictor, prediction_config
from detr_d2.inference.tiled_model import TiledModel, with_tiles

__all__ = [
    "Predictor",
    "TiledModel",
    "inference_options",
    "optimize_for_inference",
    "prediction_config",
    "with_tiles",
]
