"""Reader of Pascal VOC: one XML file per image, with boxes, and lists of images as splits.

Boxes are read as written, in pixels from the corner of the image, as current tools write them (labelImg, CVAT, Label
Studio, Roboflow). The VOC challenges themselves counted pixels from 1, with the last one inside: in files that name one
as their database, ("The VOC2007 Database"), the upper left corner is moved by one, as Detectron2 does.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

from detr_d2.data.formats.records import (
    SPLIT_NAMES,
    AnnotatedDataset,
    AnnotatedImage,
    AnnotatedObject,
    Source,
    read_numbers,
    split_of,
)
from detr_d2.data.formats.xml_file import read_xml, text_of
from detr_d2.utils.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".bmp")


def detect(source: Source) -> str | None:
    """Return what looks like Pascal VOC at the path of a source; None if nothing does."""
    files = _find_files(source.path)
    first = next(iter(files), None)
    if first is None or read_xml(first).tag != "annotation":
        return None
    return f"{len(files)} .xml files with <annotation>, e.g. {first}"


def read(source: Source) -> AnnotatedDataset:
    """Read all files of a folder, of a folder with Annotations/, or of VOCdevkit, which holds several of them."""
    files = _find_files(source.path)
    if not files:
        raise UserError(f"{source.path} has no .xml files of Pascal VOC, nor do folders Annotations in it.")
    folders = list(dict.fromkeys(file.parent for file in files))
    splits = {folder: _read_lists(folder) for folder in folders}
    images = [_read_image(file, splits[file.parent].get(file.stem, frozenset()), source) for file in files]
    roots = [root for folder in folders for root in (folder, folder.parent / "JPEGImages", folder.parent)]
    return AnnotatedDataset(images, roots)


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".xml" else []
    folders = [path, path / "Annotations", *sorted(path.glob("*/Annotations")), *(path / x for x in SPLIT_NAMES)]
    return [file for folder in folders for file in sorted(folder.glob("*.xml"))]


def _read_lists(folder: Path) -> dict[str, frozenset[str]]:
    """Return the splits of each image by its name: from lists, or from the name of the folder."""
    splits: dict[str, frozenset[str]] = {}
    for place in (folder.parent / "ImageSets" / "Main", folder, folder.parent):
        for split in SPLIT_NAMES:
            list_file = place / f"{split}.txt"
            for line in _lines(list_file) if list_file.is_file() else ():
                stem = Path(line.split()[0]).stem
                splits[stem] = splits.get(stem, frozenset()) | {split}
        if splits:
            return splits
    own = split_of(folder.name)
    return {file.stem: own for file in folder.glob("*.xml")} if own else {}


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise UserError(f"{path} can't be read as a list of images ({e}): correct or remove it.") from e


def _read_image(file: Path, splits: frozenset[str], source: Source) -> AnnotatedImage:
    root = read_xml(file)
    if root.tag != "annotation":
        raise UserError(f"{file} has <{root.tag}> where Pascal VOC has <annotation>: remove it from the folder.")
    counts_from_1 = "VOC" in text_of(root, "source/database")
    if counts_from_1:
        source.notes.add("files are of the VOC challenges: their pixels count from 1.", str(file))
    if text_of(root, "segmented") not in ("", "0"):
        source.notes.add("images have masks as PNGs (<segmented>), which are not read.", str(file))
    objects = []
    for number, element in enumerate(root.findall("object")):
        item = _read_object(element, f"object {number} (counted from 0) in {file}", counts_from_1, source)
        if item is not None:
            objects.append(item)
    file_name = text_of(root, "filename")
    names = (file_name, *(file.stem + suffix for suffix in _IMAGE_SUFFIXES))
    return AnnotatedImage(tuple(filter(None, names)), str(file), objects, _read_size(root, file), splits=splits)


def _read_size(root: Element, file: Path) -> tuple[int, int] | None:
    """Return height and width; None if the file has none, or 0, which some tools write."""
    texts = [text_of(root, f"size/{key}") for key in ("height", "width")]
    if not all(texts):
        return None
    height, width = read_numbers(texts, f"<size> of {file}", 2)
    return (int(height), int(width)) if height and width else None


def _read_object(element: Element, name: str, counts_from_1: bool, source: Source) -> AnnotatedObject | None:
    category, box = text_of(element, "name"), element.find("bndbox")
    if element.find("robndbox") is not None:
        source.drop("objects were dropped, since their boxes are rotated (<robndbox>).", name)
        return None
    if not category:
        source.drop("objects were dropped, since they have no class (<name>).", name)
        return None
    if text_of(element, "difficult") not in ("", "0"):
        source.notes.add("objects are marked as difficult. They are used like the others.", name)
    points = element.find("polygon")
    polygon = [] if points is None else read_numbers([x.text for x in points], f"<polygon> of {name}")
    if len(polygon) % 2 or 0 < len(polygon) < 6:
        raise UserError(f"<polygon> of {name} has {len(polygon)} numbers: give x and y of three or more points.")
    if box is None:
        raise UserError(f"{name} has no <bndbox>: add its box, or remove it.")
    x0, y0, x1, y1 = read_numbers([text_of(box, key) for key in _CORNERS], f"<bndbox> of {name}", 4)
    shift = 1 if counts_from_1 else 0
    return AnnotatedObject(name, category, (x0 - shift, y0 - shift, x1, y1), [polygon] if polygon else ())
