"""Names of the rows of a class head, and the category ids of its results."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from detr_d2.checkpoint.class_head import COCO_CLASSES, coco_names
from detr_d2.data.panoptic import coco_panoptic_categories

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Categories:
    """A name and a category id for every class of a model, in the order of its head's rows."""

    names: list[str]
    ids: list[int]

    def to_coco(self) -> list[dict]:
        """Return "categories" of a COCO file."""
        return [{"id": i, "name": name} for i, name in zip(self.ids, self.names, strict=True)]


def find_categories(cfg: CfgNode, num_classes: int, checkpoint_names: Sequence[str | None] | None) -> Categories:
    """Find the categories of a model for prediction.

    Names come from the checkpoint; if it has none, from the first of ``DATASETS.TEST`` and ``DATASETS.TRAIN`` that has
    as many classes; then from COCO for as many classes as COCO's models have; otherwise classes are called "class 3",
    with a warning. Ids are those of the dataset with these names, or of COCO; otherwise they count from 1.
    """
    metadata = [MetadataCatalog.get(name) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)]
    fitting = [x for x in metadata if len(x.get("thing_classes") or ()) == num_classes]
    if checkpoint_names and len(checkpoint_names) == num_classes:
        names = list(checkpoint_names)
    else:
        names = list(fitting[0].thing_classes) if fitting else coco_names(num_classes + 1)
    if names is None:
        logger.warning(
            f"Neither the checkpoint nor DATASETS has the names of the {num_classes} classes: they are called "
            f"class 0 to class {num_classes - 1}."
        )
        names = [None] * num_classes
    ids = _ids_of_datasets(fitting, names) or _ids_of_coco(names) or list(range(1, num_classes + 1))
    return Categories([name or f"class {i}" for i, name in enumerate(names)], ids)


def _ids_of_datasets(fitting: list, names: list[str | None]) -> list[int] | None:
    for metadata in fitting:
        # The rows of a panoptic dataset are things, then stuff.
        keys = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
        ids = {i: row for key in keys for i, row in (metadata.get(key) or {}).items()}
        if len(ids) == len(names) and list(metadata.thing_classes) == names:
            return sorted(ids, key=ids.get)
    return None


def _ids_of_coco(names: list[str | None]) -> list[int] | None:
    for ids_by_name in (
        {x.name: x.id for x in coco_panoptic_categories()},
        {x["name"]: x["id"] for x in COCO_CLASSES},
    ):
        if names == list(ids_by_name):
            return list(ids_by_name.values())
    # In heads over category ids a row is its id.
    return list(range(len(names))) if len(names) > len(COCO_CLASSES) and names == coco_names(len(names) + 1) else None
