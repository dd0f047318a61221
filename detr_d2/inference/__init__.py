"""Inference: the predictor, and a trained model made faster with the same call and the same results."""

from detr_d2.inference.optimization import inference_options, optimize_for_inference
from detr_d2.inference.predictor import Predictor, prediction_config

__all__ = ["Predictor", "inference_options", "optimize_for_inference", "prediction_config"]
