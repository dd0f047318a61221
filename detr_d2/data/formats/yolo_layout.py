"""Files of a YOLO dataset: which images belong to which split, where their labels and the names of the classes are."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detr_d2.data.formats.records import Source, split_of
from detr_d2.utils.errors import UserError, abbreviate

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_SPLITS = ("train", "val", "valid", "test")
_NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "labels.txt")
# Text files that stand among label files.
_NO_LABELS = {*_NAMES_FILES, *(f"{split}.txt" for split in _SPLITS), "README.txt", "README.dataset.txt"}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without aliases, with which small files can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it has an alias{self.peek_event().start_mark}: write the values themselves")
        return super().compose_node(parent, index)


class YoloDataset(NamedTuple):
    """Splits of every image, its label file if it has one, and the names of the classes by number."""

    images: dict[Path, frozenset[str]]
    labels: dict[Path, Path]
    classes: Sequence[str]
    has_keypoints: bool = False


def find_dataset_file(path: Path) -> Path | None:
    """Return the data.yaml that ``path`` is or holds; None if there is none."""
    if path.is_file():
        files = [path] if path.suffix.lower() in (".yaml", ".yml") else []
    else:
        # data.yaml first, then others by name: coco128.yaml.
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda x: (x.stem != "data", x.name))
    for file in files:
        content = _read_yaml(file)
        if isinstance(content, dict) and "names" in content and not content.keys().isdisjoint(_SPLITS):
            return file
    return None


def read_dataset_file(file: Path, source: Source) -> YoloDataset:
    """Read a data.yaml, whose splits are folders, lists of folders, or text files with a path per line.

    A split whose files do not exist is noted, and left out.

    Raises:
        UserError: no split exists, no image has labels, or the file is malformed.
    """
    content = _read_yaml(file)
    classes = _read_names(content["names"], file)
    images: dict[Path, frozenset[str]] = {}
    for split in _SPLITS:
        entries = content.get(split)
        for entry in entries if isinstance(entries, list) else [entries] if entries else ():
            for image in _images_of(entry, split, content.get("path"), file, source):
                images[image] = images.get(image, frozenset()) | {split}
    if not images:
        raise UserError(f"{file} names no images that exist: correct 'path', 'train' and 'val'.")
    labels = {image: label for image in images if (label := _label_of(image)).is_file()}
    if not labels:
        first = next(iter(images))
        raise UserError(
            f"No image of {file} has labels, e.g. {_label_of(first)} does not exist: {_hint(file.parent / 'labels')}."
        )
    return YoloDataset(images, labels, classes, has_keypoints="kpt_shape" in content)


@dataclass(frozen=True)
class LabelFolder:
    """Folder of label files without a data.yaml."""

    path: Path
    files: list[Path]

    def dataset(self, source: Source) -> YoloDataset:
        """Find the images and the names of the classes.

        Raises:
            UserError: there are none, or the folder holds several versions of the labels.
        """
        root = source.images or self._image_root()
        images = list(_walk(root))
        if not images:
            raise UserError(f"{root} has no images for the labels in {self.path}: name their folder with --images.")
        by_stem = {key: file for file in self.files for key in (_key(file, self.path), file.stem)}
        pairs = {image: by_stem.get(_key(image, root)) or by_stem.get(image.stem) for image in images}
        labels = {image: file for image, file in pairs.items() if file is not None}
        if not labels:
            raise UserError(
                f"No image in {root} has a label file in {self.path}, e.g. {images[0].stem}.txt: name the folder of "
                "the images with --images."
            )
        for file in sorted(set(self.files) - set(labels.values())):
            source.drop("label files were left out, since they have no image.", str(file))
        root = root.absolute()
        # The name of a folder says the split, that of an image does not.
        splits = {image: split_of((image.parent / "x").relative_to(root).parts[0]) for image in images}
        return YoloDataset(splits, labels, self._names(source))

    def _image_root(self) -> Path:
        """Return the folder of the images: that of the labels, or images/… beside labels/…."""
        if next(_walk(self.path), None):
            return self.path
        parts = self.path.absolute().parts
        if "labels" not in parts:
            return self.path.parent / "images"
        at = len(parts) - 1 - parts[::-1].index("labels")
        images = Path(*parts[:at], "images")
        folders = [folder for folder in self.path.iterdir() if folder.is_dir()] if len(parts) == at + 1 else []
        if len(folders) > 1 and not any((images / folder.name).is_dir() for folder in folders):
            raise UserError(
                f"{self.path} has several folders, which may be versions of the labels: {_hint(self.path)}."
            )
        same = images.joinpath(*parts[at + 1 :])
        return same if same.is_dir() else images

    def _names(self, source: Source) -> Sequence[str]:
        for folder in (self.path, *list(self.path.absolute().parents)[:3]):
            for name in _NAMES_FILES:
                if (folder / name).is_file():
                    lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
                    return [line.strip() for line in lines if line.strip()]
            if dataset_file := find_dataset_file(folder):
                return _read_names(_read_yaml(dataset_file)["names"], dataset_file)
        if source.classes:
            return source.classes
        raise UserError(
            f"There are no names for the class numbers in {self.path}, neither a data.yaml nor {_NAMES_FILES[0]}: give "
            "them in the order of the numbers, with --classes cat,dog."
        )


def find_label_folder(path: Path) -> LabelFolder | None:
    """Return the folder of label files that ``path`` is or holds; None if there is none."""
    for folder in (path / "labels", path / "obj_train_data", path) if path.is_dir() else ():
        files = [file for file in sorted(folder.rglob("*.txt")) if file.name not in _NO_LABELS]
        # In a folder of anything, only text files at its top are labels.
        files = files if folder != path or path.name == "labels" else [x for x in files if x.parent == path]
        if files:
            return LabelFolder(folder, files)
    return None


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.load(file.read_bytes(), _Loader)
    except (yaml.YAMLError, ValueError, OSError) as e:
        raise UserError(f"{file} can't be read as YAML: {' '.join(str(e).split())}") from e
    except RecursionError as e:
        raise UserError(f"{file} is nested too deeply: it is no data.yaml.") from e


def _read_names(names: Any, file: Path) -> list[str]:
    """Return the names by number, from a list or from a dict whose keys are the numbers."""
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise UserError(f"The keys of 'names' in {file} are {abbreviate(list(names))}: number the classes from 0.")
        names = [name for _, name in sorted((int(key), name) for key, name in names.items())]
    if not isinstance(names, list) or not names:
        raise UserError(f"'names' in {file} is {names!r:.60}, where a list of class names is expected: correct it.")
    if not all(isinstance(name, str | int | float) for name in names):
        raise UserError(f"'names' in {file} has values that are no text: write a name per class.")
    return [str(name).strip() for name in names]


def _images_of(entry: Any, split: str, root: Any, file: Path, source: Source) -> list[Path]:
    """Return the images of one entry of a split, in the order of their names or of the list."""
    place = _find_place(entry, root, file, source.images)
    if place is None:
        source.drop("entries of data.yaml were left out, since they do not exist.", f"{split}: {entry!r:.80}")
        return []
    if place.is_dir():
        return list(_walk(place))
    images = []
    for line in filter(str.strip, place.read_text(encoding="utf-8", errors="replace").splitlines()):
        image = _find_place(line.strip(), root, place, source.images)
        if image is None:
            source.drop("images of lists were left out, since they do not exist.", f"{line.strip():.80} in {place}")
        elif image.suffix.lower() in IMAGE_SUFFIXES:
            images.append(image)
    return images


def _find_place(entry: Any, root: Any, file: Path, images: Path | None) -> Path | None:
    """Return the file or folder that a path in a data.yaml, or in a list, means; None if none exists.

    'path' is relative to the YAML file, or to a place that is not here. Exports of Roboflow begin paths with "../"
    where the folder itself is meant, those of CVAT with "data/".
    """
    if not isinstance(entry, str) or "\0" in entry:
        return None
    here = file.absolute().parent
    roots = [images] if images else []
    roots += [here / root, here] if isinstance(root, str) and "\0" not in root else [here]
    tails = [entry, *(entry.removeprefix(prefix) for prefix in ("../", "data/") if entry.startswith(prefix))]
    places = (Path(os.path.normpath(base / tail)) for tail in tails for base in roots)
    return next((place for place in places if place.exists()), None)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and below it, in the order of their names."""
    return (x for x in sorted(folder.absolute().rglob("*")) if x.suffix.lower() in IMAGE_SUFFIXES and x.is_file())


def _label_of(image: Path) -> Path:
    """Return the label file of an image: in labels/… instead of the last images/…, or else beside it."""
    parts = image.parts
    if "images" not in parts[:-1]:
        return image.with_suffix(".txt")
    at = len(parts) - 2 - parts[:-1][::-1].index("images")
    return Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")


def _key(file: Path, root: Path) -> str:
    return str(file.absolute().relative_to(root.absolute()).with_suffix(""))


def _hint(labels: Path) -> str:
    folders: Iterable[Path] = sorted(x for x in labels.iterdir() if x.is_dir()) if labels.is_dir() else ()
    names = abbreviate([str(x) for x in folders])
    return f"give the folder of labels itself, one of {names}" if names else "give the folder of the labels itself"
