"""The one table of things and stuff: ids in the dataset, rows in the model, names."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from detr_d2.utils.errors import UserError

# The no-object row in the class head of the published panoptic checkpoints, whose other rows are COCO's category ids.
PUBLISHED_NO_OBJECT_ROW = 250


class PanopticCategory(NamedTuple):
    """A class of things (countable objects) or stuff (sky, grass)."""

    id: int
    """In the dataset."""
    name: str
    is_thing: bool
    color: tuple[int, int, int] | None = None
    """RGB in [0, 255]; None: whatever the drawing program takes."""


class PanopticCategories(tuple[PanopticCategory, ...]):
    """All classes of a dataset; the place of each is its row in the model's class head.

    The model has ``len(categories)`` foreground classes (``MODEL.DETR.NUM_CLASSES``); no-object is the row after them.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, items: Sequence[dict], source: str) -> "PanopticCategories":
        """Read the "categories" of a json file in COCO's panoptic format: things, then stuff, each in order of the ids.

        Args:
            items: dicts with "id", "name", "isthing" and perhaps "color".
            source: the file, for messages.

        Raises:
            UserError: a category lacks one of these, or shares its id with another.
        """
        categories = cls(sorted((_read(item, source) for item in items), key=lambda x: (not x.is_thing, x.id)))
        if not categories:
            raise UserError(f"{source} has no categories: list things and stuff in 'categories'.")
        if len(categories.rows) < len(categories):
            ids = [category.id for category in categories]
            repeated = next(i for i in ids if ids.count(i) > 1)
            names = " and ".join(repr(category.name) for category in categories if category.id == repeated)
            raise UserError(f"{source} has category id {repeated} more than once, for {names}: number them anew.")
        return categories

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "PanopticCategories":
        """Read the metadata of a registered panoptic dataset, in which things and stuff share one count of rows.

        Detectron2's ``coco_2017_*_panoptic`` and ``cityscapes_fine_panoptic_*`` are such.

        Raises:
            UserError: the metadata are of another kind, as those of Detectron2's ``*_panoptic_separated``.
        """
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        by_row = {row: (i, True) for i, row in things.items()} | {row: (i, False) for i, row in stuff.items()}
        names = metadata.get("thing_classes") or ()
        if not names or len(by_row) < len(things) + len(stuff) or sorted(by_row) != list(range(len(names))):
            raise UserError(
                f"Dataset {metadata.get('name')!r} does not count its things and stuff as rows of one class head: take "
                "one that detr_d2.data.register_coco_panoptic_dataset registers, or, of Detectron2's, "
                "coco_2017_train_panoptic rather than coco_2017_train_panoptic_separated."
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
        """By row."""
        return [category.name for category in self]

    @property
    def is_thing(self) -> list[bool]:
        """By row."""
        return [category.is_thing for category in self]

    def metadata(self) -> dict[str, Any]:
        """What a dataset's metadata hold of these, for ``MetadataCatalog.get(name).set(**…)``.

        As Detectron2 has it for ``coco_2017_*_panoptic``: things and stuff share the rows, and both lists of names hold
        all of them, so that Detectron2's Visualizer and evaluators find every row in either.
        """
        found: dict[str, Any] = {
            "thing_classes": self.names,
            "stuff_classes": self.names,
            "thing_dataset_id_to_contiguous_id": {x.id: row for row, x in enumerate(self) if x.is_thing},
            "stuff_dataset_id_to_contiguous_id": {x.id: row for row, x in enumerate(self) if not x.is_thing},
        }
        if all(category.color for category in self):
            found["thing_colors"] = found["stuff_colors"] = [list(category.color) for category in self]
        return found

    def published_rows(self) -> list[int]:
        """Where the published checkpoints' class head, of 251 rows, has each of our rows, and no-object last."""
        return [*(category.id for category in self), PUBLISHED_NO_OBJECT_ROW]


@functools.cache
def coco_panoptic_categories() -> PanopticCategories:
    """COCO's 80 things and 53 stuff."""
    return PanopticCategories.from_json(COCO_CATEGORIES, "Detectron2's COCO_CATEGORIES")


def _read(item: Any, source: str) -> PanopticCategory:
    try:
        number, name, is_thing = item["id"], item["name"], item["isthing"]
        color = item.get("color")
        valid = type(number) is int and isinstance(name, str) and is_thing in (0, 1)
        valid = valid and (color is None or (len(color) == 3 and all(0 <= x <= 255 for x in color)))
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UserError(
            f"The category {item} in {source} is not {{'id': whole number, 'name': text, 'isthing': 1 or 0}}, with a "
            "'color' of three numbers up to 255 if any: correct it."
        )
    return PanopticCategory(number, name, bool(is_thing), None if color is None else tuple(color))
