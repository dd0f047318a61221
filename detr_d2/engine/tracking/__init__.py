"""Experiment trackers: TensorBoard, CSV, Weights & Biases, MLflow."""

from detr_d2.engine.tracking.backends import (
    TRACKERS,
    CsvTracker,
    MlflowTracker,
    TensorBoardTracker,
    WandbTracker,
)
from detr_d2.engine.tracking.hook import Tracking
from detr_d2.engine.tracking.tracker import Events, RunInfo, Tracker

__all__ = [
    "TRACKERS",
    "CsvTracker",
    "Events",
    "MlflowTracker",
    "RunInfo",
    "TensorBoardTracker",
    "Tracker",
    "Tracking",
    "WandbTracker",
]
