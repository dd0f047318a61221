"""Loading the datasets of training and evaluation."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import print_instances_class_histogram

from detr_d2.data.annotations import annotations_of, is_crowd, is_panoptic


def load_training_records(cfg: CfgNode) -> Sequence[dict]:
    """The records of ``DATASETS.TRAIN``, for ``build_detection_train_loader(cfg, dataset=…)``.

    As Detectron2 loads them, except that a record without "annotations" is one without objects, where
    Detectron2 fails with a KeyError, and that the objects of panoptic records are their segments. Logs how
    many objects each class has.
    """
    names = cfg.DATASETS.TRAIN
    records = get_detection_dataset_dicts(names, filter_empty=False, check_consistency=False)
    if not isinstance(records, list):
        return records
    objects = [{"annotations": annotations_of(record)} for record in records]
    records = [
        record if is_panoptic(record) else record | found for record, found in zip(records, objects, strict=True)
    ]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = [x for x, found in zip(records, objects, strict=True) if not all(map(is_crowd, found["annotations"]))]
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if classes is not None:
        print_instances_class_histogram(objects, classes)
    return records


def load_test_records(dataset_name: str, batch_size: int) -> Sequence[dict]:
    """The records of a dataset to evaluate on; for batches of several images, those of one shape side by side."""
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False, check_consistency=False)
    if batch_size > 1 and isinstance(records, list) and all("height" in x and "width" in x for x in records):
        # Images are resized to one shortest side: what is left to differ is their shape.
        return sorted(records, key=lambda x: x["height"] / x["width"])
    return records
