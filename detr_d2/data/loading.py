"""Loading of the datasets of training and evaluation, and of a subset to overfit."""

import warnings
from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import print_instances_class_histogram

from detr_d2.data.annotations import annotations_of, is_crowd, is_panoptic
from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.registration import EVALUATION_METADATA
from detr_d2.utils.errors import UserError


def _from_config(cfg: CfgNode) -> dict:
    return {"names": cfg.DATASETS.TRAIN, "filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS}


@configurable(from_config=_from_config)
def load_training_records(names: Sequence[str], *, filter_empty: bool = False) -> Sequence[dict]:
    """Load the records of datasets, of a config those of ``DATASETS.TRAIN``, for ``build_detection_train_loader``.

    As Detectron2 loads them, except that a record without "annotations" is one without objects, where
    Detectron2 fails with a KeyError, and that the objects of panoptic records are their segments. Logs how
    many objects each class has.

    Args:
        names: registered datasets.
        filter_empty: True to leave images without objects out.
    """
    records = get_detection_dataset_dicts(names, filter_empty=False, check_consistency=False)
    if not isinstance(records, list):
        return records
    objects = [{"annotations": annotations_of(record)} for record in records]
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    pairs = list(zip(records, objects, strict=True))
    if filter_empty:
        pairs = [(record, found) for record, found in pairs if not all(map(is_crowd, found["annotations"]))]
    if classes is not None:
        print_instances_class_histogram(objects, classes)
    return [record if is_panoptic(record) else record | found for record, found in pairs]


def load_test_records(dataset_name: str, batch_size: int) -> Sequence[dict]:
    """Load the records of a dataset to evaluate on; for batches of several images, those of one shape side by side."""
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False, check_consistency=False)
    if batch_size > 1 and isinstance(records, list) and all("height" in x and "width" in x for x in records):
        # Images are resized to one shortest side, so only their aspect ratios differ.
        return sorted(records, key=lambda x: x["height"] / x["width"])
    return records


def overfit_config(cfg: CfgNode, num_images: int) -> CfgNode:
    """Return a copy of ``cfg`` that trains and evaluates on the first images with objects of ``DATASETS.TRAIN``.

    Every image has the size that it has in inference, without flipping or cropping.

    Raises:
        UserError: there are fewer images with objects.
    """
    name = _register_first_images(cfg.DATASETS.TRAIN[0], num_images)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    cfg.freeze()
    return cfg


def memorizing_config(cfg: CfgNode, num_images: int) -> CfgNode:
    """Return :func:`overfit_config`, under its earlier name."""
    warnings.warn("memorizing_config is now called overfit_config.", DeprecationWarning, stacklevel=2)
    return overfit_config(cfg, num_images)


def _register_first_images(dataset: str, count: int) -> str:
    name = f"{dataset}_first_{count}"
    if name in DatasetCatalog:
        return name
    images = [x for x in DatasetCatalog.get(dataset) if not all(map(is_crowd, annotations_of(x)))][:count]
    if len(images) < count:
        raise UserError(
            f"Overfitting needs {count} images with objects, but dataset {dataset!r} has {len(images)}: choose fewer."
        )
    DatasetCatalog.register(name, lambda: images)
    source = MetadataCatalog.get(dataset)
    metadata = {"evaluator_type": "coco", "thing_classes": source.thing_classes}
    if any(map(is_panoptic, images)):
        paths = {key: source.get(key) for key in ("panoptic_json", "panoptic_root", "image_root")}
        metadata = {**paths, **EVALUATION_METADATA, **PanopticCategories.from_metadata(source).metadata()}
    MetadataCatalog.get(name).set(**metadata)
    return name
