"""Pictures of training."""

from detr_d2.visualization.curves import plot_training, read_metrics

__all__ = ["plot_training", "read_metrics"]
