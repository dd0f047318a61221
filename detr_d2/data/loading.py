"""Loading the training datasets."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram


def load_training_records(cfg: CfgNode) -> Sequence[dict]:
    """The records of ``DATASETS.TRAIN``, for ``build_detection_train_loader(cfg, dataset=…)``.

    As Detectron2 loads them, except that a record without "annotations" is one without objects, where
    Detectron2 fails with a KeyError. Logs how many objects each class has.
    """
    names = cfg.DATASETS.TRAIN
    records = get_detection_dataset_dicts(names, filter_empty=False, check_consistency=False)
    if not isinstance(records, list):
        return records
    records = [record if record.get("annotations") else {**record, "annotations": []} for record in records]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if classes is not None:
        print_instances_class_histogram(records, classes)
    return records
