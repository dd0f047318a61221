"""Data to learn by heart: a few images, without augmentation."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data.annotations import annotations_of, is_crowd, is_panoptic
from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.registration import EVALUATION_METADATA
from detr_d2.utils.errors import UserError


def memorizing_config(cfg: CfgNode, num_images: int) -> CfgNode:
    """A copy of ``cfg`` that trains and evaluates on the first images with objects of ``DATASETS.TRAIN``.

    Every image keeps its size of inference; nothing is flipped or cropped.

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


def _register_first_images(dataset: str, count: int) -> str:
    name = f"{dataset}_first_{count}"
    if name in DatasetCatalog:
        return name
    images = [x for x in DatasetCatalog.get(dataset) if not all(is_crowd(a) for a in annotations_of(x))][:count]
    if len(images) < count:
        raise UserError(f"{count} images are to be learned, but dataset {dataset!r} has {len(images)} with objects.")
    DatasetCatalog.register(name, lambda: images)
    source = MetadataCatalog.get(dataset)
    metadata = {"evaluator_type": "coco", "thing_classes": source.thing_classes}
    if any(map(is_panoptic, images)):
        paths = {key: source.get(key) for key in ("panoptic_json", "panoptic_root", "image_root")}
        metadata = {**paths, **EVALUATION_METADATA, **PanopticCategories.from_metadata(source).metadata()}
    MetadataCatalog.get(name).set(**metadata)
    return name
