"""Reader of COCO's instances format, to merge, split or filter such files: used as it is, a file needs no reading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_d2.data.formats.records import (
    SPLIT_NAMES,
    AnnotatedDataset,
    AnnotatedImage,
    AnnotatedObject,
    Source,
    read_numbers,
    read_size,
    split_of,
)
from detr_d2.data.registration import category_names, check_images, read_coco_content
from detr_d2.utils.errors import UserError

# Files of a folder that are opened to recognize the format.
_MAX_OPENED = 5


def detect(source: Source) -> str | None:
    """Return what looks like COCO's format at the path of a source; None if nothing does."""
    files = find_files(source.path)[:_MAX_OPENED]
    first = next((file for file in files if _is_instances(source.json(file))), None)
    return first and f"{first} with 'images', 'annotations' and 'categories'"


def read(source: Source) -> AnnotatedDataset:
    """Read a file, or all files of a folder and of annotations/ or train/, val/ and test/ in it.

    Classes are in the order of their ids.

    Raises:
        UserError: a file is malformed, or the files have different classes.
    """
    files = [file for file in find_files(source.path) if _is_instances(source.json(file))]
    if not files:
        raise UserError(f"{source.path} has no .json file with 'images', 'annotations' and 'categories'.")
    images, classes = [], {}
    for file in files:
        content = read_coco_content(str(file))
        names = category_names(content["categories"], str(file))
        classes |= dict.fromkeys(names.values())
        images += _read_images(content, names, file, split_of(file.stem) or split_of(file.parent.name), source)
    return AnnotatedDataset(images, image_roots(files), list(classes))


def find_files(path: Path) -> list[Path]:
    """Return the JSON files that may hold annotations: a file itself, or those of a folder."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    folders = (path / "annotations", path, *(path / name for name in SPLIT_NAMES))
    files = next((found for folder in folders[:2] if (found := sorted(folder.glob("*.json")))), None)
    files = files or [file for folder in folders[2:] for file in sorted(folder.glob("*.json"))]
    # Beside them COCO has captions_… and person_keypoints_….
    return [file for file in files if file.name.startswith("instances")] or files


def image_roots(files: list[Path]) -> list[Path]:
    """Return the folders in which the images of annotation files may be."""
    folders = dict.fromkeys(file.parent for file in files)
    roots = [root for folder in folders for root in (folder, folder / "images", folder.parent / "images")]
    parents = {folder.parent for folder in folders if folder.name == "annotations"}
    return roots + [
        x for parent in sorted(parents) for x in sorted(parent.iterdir()) if x.is_dir() and split_of(x.name)
    ]


def _is_instances(content: Any) -> bool:
    if not isinstance(content, Mapping) or not {"images", "categories"} <= content.keys():
        return False
    items = content.get("annotations")
    first = items[0] if isinstance(items, list) and items else {}
    return isinstance(first, Mapping) and "segments_info" not in first


def _read_images(
    content: dict, names: dict[int, str], file: Path, splits: frozenset[str], source: Source
) -> list[AnnotatedImage]:
    check_images(content["images"], str(file))
    objects: dict[Any, list[AnnotatedObject]] = {item["id"]: [] for item in content["images"]}
    for number, item in enumerate(content.get("annotations", [])):
        name = f"annotation {number} (counted from 0) in {file}"
        image = item.get("image_id") if isinstance(item, Mapping) else None
        if not isinstance(image, int | str) or image not in objects:
            source.drop("annotations were dropped, since their images are not listed.", name)
        else:
            objects[image].append(_read_object(item, names, name, source))
    return [
        AnnotatedImage((_file_name(item, file),), str(file), objects[item["id"]], _read_size(item, file), splits=splits)
        for item in content["images"]
    ]


def _file_name(item: Mapping, file: Path) -> str:
    if not isinstance(item.get("file_name"), str):
        raise UserError(
            f"Image {item['id']} in {file} has the 'file_name' {item.get('file_name')!r:.40}: name its file."
        )
    return item["file_name"]


def _read_size(item: Mapping, file: Path) -> tuple[int, int]:
    what = f"The height and width of image {item['id']} in {file}"
    return read_size([item.get("height"), item.get("width")], what)


def _read_object(item: Mapping, names: dict[int, str], name: str, source: Source) -> AnnotatedObject:
    category = item.get("category_id")
    if type(category) is not int or category not in names:
        raise UserError(
            f"The 'category_id' of {name} is {category!r:.40}, which 'categories' does not list: correct it."
        )
    if item.get("keypoints"):
        source.notes.add("annotations have keypoints, which are not read.", name)
    x, y, width, height = read_numbers(item.get("bbox"), f"The 'bbox' of {name}", 4)
    segmentation = item.get("segmentation") or ()
    if isinstance(segmentation, list):
        segmentation = [read_numbers(polygon, f"A polygon of {name}") for polygon in segmentation]
        segmentation = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    elif not isinstance(segmentation, dict):
        segmentation = ()
    return AnnotatedObject(
        name, names[category], (x, y, x + width, y + height), segmentation, bool(item.get("iscrowd"))
    )
