"""Reader of LabelMe: one JSON file per image, with rectangles and polygons."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_d2.data.formats.records import (
    SPLIT_NAMES,
    AnnotatedDataset,
    AnnotatedImage,
    AnnotatedObject,
    Source,
    corners,
    read_numbers,
    read_points,
    read_size,
    split_of,
)
from detr_d2.utils.errors import UserError

_DROPPED = {
    "point": "enclose nothing",
    "points": "enclose nothing",
    "line": "enclose nothing",
    "linestrip": "enclose nothing",
    "circle": "are circles",
    "oriented_rectangle": "are rotated boxes",
    "mask": "are masks of pixels",
}


def detect(source: Source) -> str | None:
    """Return what looks like LabelMe at the path of a source; None if nothing does."""
    files = _find_files(source.path)
    if not files or not _is_labelme(source.json(files[0])):
        return None
    return f"{len(files)} .json files with 'shapes' and 'imagePath', e.g. {files[0]}"


def read(source: Source) -> AnnotatedDataset:
    """Read all JSON files of a folder, and of folders train, val and test in it."""
    files = _find_files(source.path)
    if not files:
        raise UserError(f"{source.path} has no .json files of LabelMe: give the folder that holds them.")
    images = [_read_image(file, source.json(file), source) for file in files]
    return AnnotatedDataset(images, list(dict.fromkeys(file.parent for file in files)))


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    return [x for folder in (path, *(path / name for name in SPLIT_NAMES)) for x in sorted(folder.glob("*.json"))]


def _is_labelme(content: Any) -> bool:
    return isinstance(content, Mapping) and {"shapes", "imagePath"} <= content.keys()


def _read_image(file: Path, content: Any, source: Source) -> AnnotatedImage:
    if not _is_labelme(content) or not isinstance(content["shapes"], list) or not isinstance(content["imagePath"], str):
        raise UserError(
            f"{file} has no list 'shapes' with an 'imagePath', as LabelMe's files have: remove or correct it."
        )
    # LabelMe on Windows writes backslashes.
    path = content["imagePath"].replace("\\", "/")
    size = [content.get(key) for key in ("imageHeight", "imageWidth")]
    known = None if None in size else read_size(size, f"The image's size in {file}")
    groups: dict[Any, AnnotatedObject] = {}
    for number, shape in enumerate(content["shapes"]):
        item = _read_shape(shape, f"shape {number} (counted from 0) in {file}", source)
        if item is None:
            continue
        # Polygons of one label and group are pieces of one object.
        group = shape.get("group_id")
        key = number if group is None or item.box else (item.category, str(group))
        whole = groups.get(key, AnnotatedObject(item.name, item.category))
        groups[key] = AnnotatedObject(whole.name, item.category, item.box, [*whole.segmentation, *item.segmentation])
    names = (str(file.parent / path), path, Path(path).name)
    return AnnotatedImage(names, str(file), list(groups.values()), known, splits=split_of(file.parent.name))


def _read_shape(shape: Any, name: str, source: Source) -> AnnotatedObject | None:
    if not isinstance(shape, Mapping):
        raise UserError(f"There is no object at {name} but {shape!r:.40}: correct it.")
    kind, label = shape.get("shape_type") or "polygon", shape.get("label")
    if kind not in ("rectangle", "polygon"):
        source.drop(
            f"shapes were dropped, since they {_DROPPED.get(str(kind), f'are of an unknown kind, {kind!r:.20}')}.", name
        )
        return None
    if not isinstance(label, str) or not label.strip():
        source.drop("shapes were dropped, since they have no label.", name)
        return None
    if kind == "polygon":
        return AnnotatedObject(
            name, label.strip(), segmentation=[read_points(shape.get("points"), f"The polygon of {name}")]
        )
    points = shape.get("points")
    flat = (
        [x for point in points for x in read_numbers(point, f"The rectangle of {name}", 2)]
        if isinstance(points, list)
        else ()
    )
    return AnnotatedObject(name, label.strip(), corners(read_numbers(flat, f"The rectangle of {name}", 4)))
