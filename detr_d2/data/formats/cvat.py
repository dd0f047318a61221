"""Reader of "CVAT for images 1.1": one XML file of all images, with boxes and polygons."""

from pathlib import Path
from xml.etree.ElementTree import Element

from detr_d2.data.formats.records import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotatedObject,
    Source,
    read_numbers,
    read_points,
    read_size,
    split_of,
)
from detr_d2.data.formats.xml_file import read_xml, text_of
from detr_d2.utils.errors import UserError

_CORNERS = ("xtl", "ytl", "xbr", "ybr")
# Other shapes of CVAT, and why they are no objects of a detector.
_DROPPED = {
    "polyline": "enclose nothing",
    "points": "enclose nothing",
    "skeleton": "are keypoints",
    "cuboid": "are cuboids",
    "ellipse": "are ellipses",
    "mask": "are masks of pixels (in CVAT, export COCO 1.0 to keep them)",
    "tag": "are tags of whole images",
}


def detect(source: Source) -> str | None:
    """Return what looks like an export of CVAT at the path of a source; None if nothing does."""
    file = _find_file(source.path)
    return f"{file} with <annotations>" if file and read_xml(file).tag == "annotations" else None


def read(source: Source) -> AnnotatedDataset:
    """Read ``annotations.xml``; classes are in the order of the project's labels."""
    file = _find_file(source.path)
    if file is None:
        raise UserError(f"{source.path} has no annotations.xml of CVAT: give that file, or its folder.")
    root = read_xml(file)
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        hint = "it holds tracks of a video" if root.find("track") is not None else "it has no <image> in <annotations>"
        raise UserError(f"{file} can't be used, since {hint}: in CVAT, export as 'CVAT for images 1.1'.")
    labels = [text_of(label, "name") for label in root.iterfind("meta//labels/label")]
    folder = file.parent
    return AnnotatedDataset(
        [_read_image(image, number, file, source) for number, image in enumerate(images)],
        [folder / "images", folder],
        list(dict.fromkeys(filter(None, labels))) or None,
    )


def _find_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() == ".xml" else None
    return path / "annotations.xml" if (path / "annotations.xml").is_file() else None


def _read_image(element: Element, number: int, file: Path, source: Source) -> AnnotatedImage:
    file_name = element.get("name")
    if not file_name:
        raise UserError(f"Image {number} (counted from 0) in {file} has no name: export it again.")
    where = f"image {file_name} in {file}"
    size = None
    if element.get("width") and element.get("height"):
        size = read_size([element.get("height"), element.get("width")], f"The size of {where}")
    shapes = (_read_shape(x, f"shape {i} (counted from 0) of {where}", source) for i, x in enumerate(element))
    subset = element.get("subset") or ""
    names = (file_name, f"{subset}/{file_name}") if subset else (file_name,)
    return AnnotatedImage(names, str(file), [x for x in shapes if x is not None], size, splits=split_of(subset))


def _read_shape(element: Element, name: str, source: Source) -> AnnotatedObject | None:
    kind, category = element.tag, (element.get("label") or "").strip()
    if kind not in ("box", "polygon"):
        source.drop(
            f"shapes were dropped, since they {_DROPPED.get(kind, f'are of an unknown kind, <{kind:.20}>')}.", name
        )
        return None
    if not category:
        source.drop("shapes were dropped, since they have no label.", name)
        return None
    if kind == "polygon":
        points = [point.split(",") for point in (element.get("points") or "").split(";")]
        return AnnotatedObject(name, category, segmentation=[read_points(points, f"The polygon of {name}")])
    if read_numbers([element.get("rotation") or 0], f"The rotation of {name}")[0] % 360:
        source.drop("shapes were dropped, since they are rotated boxes.", name)
        return None
    return AnnotatedObject(name, category, read_numbers([element.get(x) for x in _CORNERS], f"The box of {name}", 4))
