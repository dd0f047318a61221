"""Datasets: registration, loading, checks before training, and the mapper from records to the model's input."""

from detr_d2.data.checks import check_datasets
from detr_d2.data.loading import load_test_records, load_training_records, memorizing_config, overfit_config
from detr_d2.data.mapper import DetrDatasetMapper
from detr_d2.data.mixing import MixingMapper, build_training_mapper
from detr_d2.data.panoptic.registration import register_coco_panoptic_dataset
from detr_d2.data.registration import register_coco_dataset
from detr_d2.data.shapes import ShapesSpec, register_shapes

__all__ = [
    "DetrDatasetMapper",
    "MixingMapper",
    "ShapesSpec",
    "build_training_mapper",
    "check_datasets",
    "load_test_records",
    "load_training_records",
    "memorizing_config",
    "overfit_config",
    "register_coco_dataset",
    "register_coco_panoptic_dataset",
    "register_shapes",
]
