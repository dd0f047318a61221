"""Datasets: registration, loading, checks before training, and the mapper from records to the model's input."""

from detr_d2.data.checks.dataset_checks import check_datasets
from detr_d2.data.loading import load_test_records, load_training_records
from detr_d2.data.mapper import DetrDatasetMapper
from detr_d2.data.memorizing import memorizing_config
from detr_d2.data.own_data import register_coco_dataset
from detr_d2.data.panoptic.registration import register_coco_panoptic_dataset
from detr_d2.data.shapes import ShapesSpec, register_shapes

__all__ = [
    "DetrDatasetMapper",
    "ShapesSpec",
    "check_datasets",
    "load_test_records",
    "load_training_records",
    "memorizing_config",
    "register_coco_dataset",
    "register_coco_panoptic_dataset",
    "register_shapes",
]
