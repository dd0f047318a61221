"""Pictures: detections, attention, training."""

from detr_d2.visualization.attention import draw_encoder_attention, draw_query_attention
from detr_d2.visualization.curves import plot_training, read_metrics
from detr_d2.visualization.instances import class_colour, class_name, draw_instances
from detr_d2.visualization.panoptic import draw_panoptic

__all__ = [
    "class_colour",
    "class_name",
    "draw_encoder_attention",
    "draw_instances",
    "draw_panoptic",
    "draw_query_attention",
    "plot_training",
    "read_metrics",
]
