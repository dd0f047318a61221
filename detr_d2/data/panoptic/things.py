"""Which classes of a model are things."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data.panoptic.categories import PanopticCategories, coco_panoptic_categories
from detr_d2.utils.errors import UserError


def things_of_model(cfg: CfgNode) -> tuple[bool, ...]:
    """For each of the ``MODEL.DETR.NUM_CLASSES`` rows of a model's class head, whether it is of things.

    As ``MODEL.DETR.PANOPTIC.NUM_THINGS`` says; else as the first panoptic dataset in ``DATASETS.TEST`` and
    ``DATASETS.TRAIN`` with as many classes does; else COCO's, if the model has COCO's 133 classes.

    Raises:
        UserError: none of them tells.
    """
    num_classes = cfg.MODEL.DETR.NUM_CLASSES
    num_things = cfg.MODEL.DETR.PANOPTIC.NUM_THINGS
    if num_things is not None:
        return tuple(row < num_things for row in range(num_classes))
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        if metadata.get("stuff_dataset_id_to_contiguous_id"):
            categories = PanopticCategories.from_metadata(metadata)
            if len(categories) == num_classes:
                return tuple(categories.is_thing)
    if num_classes == len(coco_panoptic_categories()):
        return tuple(coco_panoptic_categories().is_thing)
    unknown = [name for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if name not in DatasetCatalog]
    missing = f" ({', '.join(unknown)}: not registered here)" if unknown else ""
    raise UserError(
        f"Which of the MODEL.DETR.NUM_CLASSES {num_classes} classes are things is not known: no panoptic dataset in "
        f"DATASETS has as many{missing}. Set MODEL.DETR.PANOPTIC.NUM_THINGS to the number of categories with 'isthing' "
        "1 in the panoptic json that the model learned from; their rows come first in the class head."
    )
