"""Names in Detectron2's catalogs of datasets."""

import os
from collections.abc import Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.utils.errors import UserError


def make_room(name: str, paths: Mapping[str, str]) -> None:
    """Let go of a dataset that is registered under this name with the same files.

    Args:
        name: to register another dataset with.
        paths: of its files, by their key in the metadata; the first is the annotations' json.

    Raises:
        UserError: the name stands for other files.
    """
    if name not in DatasetCatalog:
        return
    metadata = MetadataCatalog.get(name)
    held = {key: metadata.get(key) for key in paths}
    if None in held.values() or any(_absolute(held[key]) != _absolute(path) for key, path in paths.items()):
        known = "a dataset that is made otherwise" if None in held.values() else _describe(held)
        raise UserError(
            f"The dataset name {name!r} stands for {known}; it can't stand for {_describe(paths)} too: "
            "take another name."
        )
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _describe(paths: Mapping[str, str]) -> str:
    return f"{next(iter(paths.values()))} with images in {paths['image_root']}"


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)
