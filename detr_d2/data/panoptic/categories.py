"""Table of things and stuff: ids in the dataset, rows in the model's class head, names."""

import functools
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from detr_d2.utils.errors import UserError


class PanopticCategory(NamedTuple):
    """Class of things (countable objects) or stuff (sky, grass)."""

    id: int  # Category id in the dataset.
    name: str
    is_thing: bool
    color: tuple[int, int, int] | None = None  # RGB in [0, 255]; None: the default of the visualization.


class PanopticCategories(tuple[PanopticCategory, ...]):
    """All classes of a dataset; the index of each is its row in the model's class head.

    The model has ``len(categories)`` foreground classes (``MODEL.DETR.NUM_CLASSES``); no-object is the row after them.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, items: Sequence[dict], source: str) -> "PanopticCategories":
        """Read "categories" in COCO's panoptic format: things, then stuff, each in the order of their ids.

        Raises:
            UserError: an item is not a category, or shares its id with another; the message names ``source``.
        """
        categories = cls(sorted((_read(item, source) for item in items), key=lambda x: (not x.is_thing, x.id)))
        if not categories:
            raise UserError(f"{source} has no categories: list things and stuff in 'categories'.")
        number, count = Counter(category.id for category in categories).most_common(1)[0]
        if count > 1:
            names = " and ".join(repr(category.name) for category in categories if category.id == number)
            raise UserError(f"{source} has category id {number} more than once, for {names}: make the ids unique.")
        return categories

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "PanopticCategories":
        """Read the metadata of a registered panoptic dataset whose things and stuff are rows of one class head.

        Detectron2's ``coco_2017_*_panoptic`` and ``cityscapes_fine_panoptic_*`` are of this kind.

        Raises:
            UserError: the metadata are of another kind, as those of Detectron2's ``*_panoptic_separated``.
        """
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        by_row = {row: (i, True) for i, row in things.items()} | {row: (i, False) for i, row in stuff.items()}
        names = metadata.get("thing_classes") or ()
        if not names or len(by_row) < len(things) + len(stuff) or sorted(by_row) != list(range(len(names))):
            raise UserError(
                f"Dataset {metadata.get('name')!r} does not count its things and stuff as rows of one class head: use "
                "one that detr_d2.data.register_coco_panoptic_dataset registers, or, of Detectron2's, "
                "coco_2017_train_panoptic instead of coco_2017_train_panoptic_separated."
            )
        colors = metadata.get("thing_colors") or [None] * len(names)
        return cls(
            PanopticCategory(by_row[row][0], name, by_row[row][1], color and tuple(color))
            for row, (name, color) in enumerate(zip(names, colors, strict=True))
        )

    @property
    def rows(self) -> dict[int, int]:
        """Row by dataset id."""
        return {category.id: row for row, category in enumerate(self)}

    @property
    def names(self) -> list[str]:
        """Name by row."""
        return [category.name for category in self]

    @property
    def is_thing(self) -> list[bool]:
        """True for things, False for stuff, by row."""
        return [category.is_thing for category in self]

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of a dataset with these categories, for ``MetadataCatalog.get(name).set(**…)``.

        As of Detectron2's ``coco_2017_*_panoptic``: Visualizer and evaluators find every row in both lists of names.
        """
        metadata: dict[str, Any] = {
            "thing_classes": self.names,
            "stuff_classes": self.names,
            "thing_dataset_id_to_contiguous_id": {x.id: row for row, x in enumerate(self) if x.is_thing},
            "stuff_dataset_id_to_contiguous_id": {x.id: row for row, x in enumerate(self) if not x.is_thing},
        }
        if all(category.color for category in self):
            metadata["thing_colors"] = metadata["stuff_colors"] = [list(category.color) for category in self]
        return metadata


@functools.cache
def coco_panoptic_categories() -> PanopticCategories:
    """Return COCO's 80 things and 53 stuff."""
    return PanopticCategories.from_json(COCO_CATEGORIES, "Detectron2's COCO_CATEGORIES")


def published_panoptic_rows() -> list[int]:
    """Return the rows of COCO's categories and of no-object in published panoptic checkpoints: their ids, and 250."""
    return [*(category.id for category in coco_panoptic_categories()), 250]


def things_of_model(cfg: CfgNode) -> tuple[bool, ...]:
    """Return whether each of the ``MODEL.DETR.NUM_CLASSES`` rows of a model's class head is a thing.

    From ``MODEL.DETR.PANOPTIC.NUM_THINGS`` if set; else from the first panoptic dataset in ``DATASETS.TEST`` and
    ``DATASETS.TRAIN`` with as many classes; else from COCO, if the model has COCO's 133 classes.

    Raises:
        UserError: none of these applies.
    """
    num_classes, num_things = cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.PANOPTIC.NUM_THINGS
    if num_things is not None:
        return tuple(row < num_things for row in range(num_classes))
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    datasets = (MetadataCatalog.get(name) for name in names)
    panoptic = (dataset for dataset in datasets if dataset.get("stuff_dataset_id_to_contiguous_id"))
    for categories in chain(map(PanopticCategories.from_metadata, panoptic), [coco_panoptic_categories()]):
        if len(categories) == num_classes:
            return tuple(categories.is_thing)
    unknown = [name for name in names if name not in DatasetCatalog]
    missing = f" ({', '.join(unknown)}: not registered here)" if unknown else ""
    raise UserError(
        f"Which of the MODEL.DETR.NUM_CLASSES {num_classes} classes are things is unknown: no panoptic dataset in "
        f"DATASETS has as many{missing}. Set MODEL.DETR.PANOPTIC.NUM_THINGS to the number of categories with 'isthing' "
        "1 in the panoptic JSON that the model learned from; their rows come first in the class head."
    )


def _read(item: Any, source: str) -> PanopticCategory:
    try:
        number, name, is_thing, color = item["id"], item["name"], item["isthing"], item.get("color")
        valid = type(number) is int and isinstance(name, str) and is_thing in (0, 1)
        valid = valid and (color is None or (len(color) == 3 and all(0 <= x <= 255 for x in color)))
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UserError(
            f"The category {item} in {source} is not {{'id': integer, 'name': string, 'isthing': 1 or 0}}, "
            "optionally with a 'color' of three numbers up to 255: correct it."
        )
    return PanopticCategory(number, name, bool(is_thing), None if color is None else tuple(color))
