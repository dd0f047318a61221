"""Visualization: images with detections and attention, plots of training, and previews of datasets."""

from detr_d2.visualization.attention import draw_encoder_attention, draw_query_attention
from detr_d2.visualization.curves import plot_curves, plot_training, read_metrics
from detr_d2.visualization.detections import class_name, draw_instances, draw_panoptic
from detr_d2.visualization.style import palette_color

__all__ = [
    "class_name",
    "draw_encoder_attention",
    "draw_instances",
    "draw_panoptic",
    "draw_query_attention",
    "palette_color",
    "plot_curves",
    "plot_training",
    "read_metrics",
]
