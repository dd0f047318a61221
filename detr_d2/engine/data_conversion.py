"""Conversion of datasets of other formats that are given on the command line, to files in COCO's format."""

import argparse
import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from detr_d2.data.formats import AnnotatedDataset, AnnotatedImage, Source, pick_split, read_dataset, recognize, to_coco
from detr_d2.data.formats.coco import image_roots
from detr_d2.data.registration import read_coco_content
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import write_json


class _Part(NamedTuple):
    """Images of a dataset to train on or to evaluate on."""

    source: Source
    dataset: AnnotatedDataset
    images: Sequence[AnnotatedImage]


def convert_data(args: argparse.Namespace) -> list[str]:
    """Convert ``--train-data`` and ``--val-data``, so that ``--train-json`` and its like of ``args`` name COCO files.

    These are in a temporary folder that is removed when this process ends. A file in COCO's format is used as it is.
    Without validation data, the split for it of ``--train-data`` is converted, if there is one. Does nothing if
    ``args`` has none of the flags, or was converted before, perhaps by the process that started this one. Returns lines
    about what was found and dropped.

    Raises:
        UserError: flags contradict each other, or the files can't be used.
    """
    given = {split: getattr(args, f"{split}_data", None) for split in ("train", "val")}
    given = {split: path for split, path in given.items() if path}
    if not given:
        if getattr(args, "classes", None):
            raise UserError("--classes goes with --train-data or --val-data: give them.")
        return getattr(args, "data_messages", [])
    messages: list[str] = []
    parts: dict[str, _Part] = {}
    for split, path in given.items():
        if any(getattr(args, f"{split}_{kind}", None) for kind in ("json", "panoptic")):
            raise UserError(f"--{split}-data is given instead of --{split}-json and --{split}-panoptic: give one.")
        images = getattr(args, f"{split}_images", None)
        source = Source(Path(path), Path(images) if images else None, args.classes)
        if source.classes is None and recognize(source)[0] == "coco" and source.path.is_file():
            _use_coco_file(args, split, source)
            continue
        found, dataset = read_dataset(source)
        messages.append(found)
        names = {use: pick_split(dataset.splits(), for_training=use == "train") for use in ("train", "val")}
        parts[split] = _Part(source, dataset, dataset.select(names[split]) if names[split] else dataset.images)
        if split == "train" and all(names.values()) and "val" not in given and not getattr(args, "val_json", None):
            messages.append(f"Its split {names['train']} is trained on, its split {names['val']} evaluated on.")
            parts["val"] = _Part(source, dataset, dataset.select(names["val"]))
    if parts:
        _write(args, parts)
        # The parts of one dataset share its notes.
        sources = {id(part.source): part.source for part in parts.values()}
        messages += [line for source in sources.values() for line in source.notes.lines()]
    args.train_data = args.val_data = args.classes = None
    args.data_messages = messages
    return messages


def _use_coco_file(args: argparse.Namespace, split: str, source: Source) -> None:
    """Set the arguments to a file in COCO's format, and to the folder that holds its first image."""
    setattr(args, f"{split}_json", str(source.path))
    if source.images is not None:
        return
    first = read_coco_content(str(source.path))["images"][0]
    name = first.get("file_name") if isinstance(first, dict) else None
    roots = image_roots([source.path])
    root = next((root for root in roots if isinstance(name, str) and os.path.isfile(root / name)), None)
    if root is None:
        looked = ", ".join(map(str, roots))
        raise UserError(f"Image {name!r:.80} of {source.path} is not in {looked}: give the folder, --{split}-images.")
    setattr(args, f"{split}_images", str(root))


def _write(args: argparse.Namespace, parts: dict[str, _Part]) -> None:
    """Write the parts in COCO's format, all with the same classes, and set the arguments to the files."""
    classes = _common_classes(parts.values())
    for split, (source, dataset, images) in parts.items():
        (coco,), root = to_coco(replace(dataset, classes=classes), [images], source)
        path = os.path.join(_temporary_folder(), f"{split}.json")
        write_json(path, coco)
        setattr(args, f"{split}_json", path)
        setattr(args, f"{split}_images", root)


@functools.cache
def _temporary_folder() -> str:
    """Make the folder of this process; the same for all calls, so that a dataset can be registered again."""
    folder = tempfile.mkdtemp(prefix="detr_d2_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _common_classes(parts: Collection[_Part]) -> list[str]:
    """Return the classes of all parts: in the order of their formats, or sorted where these have none."""
    ordered = [name for part in parts for name in part.dataset.classes or ()]
    used = {item.category for part in parts for image in part.images for item in image.objects}
    return list(dict.fromkeys([*ordered, *sorted(used)]))
