"""Predicting with trained models."""

from detr_d2.inference.optimization import inference_options, optimize_for_inference

__all__ = ["inference_options", "optimize_for_inference"]
