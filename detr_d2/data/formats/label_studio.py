"""Reader of Label Studio's JSON export: boxes and polygons in percent of the image."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detr_d2.data.formats.records import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotatedObject,
    Source,
    read_numbers,
    read_points,
    read_size,
)
from detr_d2.utils.errors import UserError

_DROPPED = {
    "ellipselabels": "are ellipses",
    "keypointlabels": "are keypoints",
    "brushlabels": "are masks of pixels (in Label Studio, export COCO to keep them)",
    "videorectangle": "are of a video",
}
_LABELS = {"rectanglelabels": "rectanglelabels", "polygonlabels": "polygonlabels"}
# Uploaded files have a prefix: 1a2b3c4d-photo.jpg.
_PREFIX_LENGTH = 8


def detect(source: Source) -> str | None:
    """Return what looks like an export of Label Studio at the path of a source; None if nothing does."""
    file = source.find_json(_is_export)
    return file and f"{file} with a list of tasks that have 'data' and 'annotations'"


def read(source: Source) -> AnnotatedDataset:
    """Read an export, a list of tasks; of each, one annotation that was not cancelled."""
    file = source.find_json(_is_export)
    if file is None:
        raise UserError(
            f"{source.path} is no export of Label Studio as JSON, a list of tasks with 'data' and 'annotations': "
            "export as JSON, not JSON-MIN."
        )
    tasks = source.json(file)
    images = [
        _read_task(task, f"task {number} (counted from 0) in {file}", source) for number, task in enumerate(tasks)
    ]
    return AnnotatedDataset(images, [file.parent, file.parent / "images"])


def _is_export(content: Any) -> bool:
    """Check for a list whose first item is a task; "completions" was the name of early versions."""
    first = content[0] if isinstance(content, list) and content else None
    return (
        isinstance(first, Mapping) and "data" in first and not first.keys().isdisjoint({"annotations", "completions"})
    )


def _read_task(task: Any, name: str, source: Source) -> AnnotatedImage:
    data = task.get("data") if isinstance(task, Mapping) else None
    url = next((x for x in data.values() if _is_image(x)), None) if isinstance(data, Mapping) else None
    if url is None:
        raise UserError(f"There is no image among the 'data' of {name}: only tasks with images can be used.")
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not all(isinstance(x, Mapping) for x in annotations):
        raise UserError(
            f"The 'annotations' of {name} are {annotations!r:.40}, where a list is expected: export it again."
        )
    valid = [x for x in annotations if not x.get("was_cancelled")]
    if len(valid) > 1:
        source.notes.add("tasks have several annotations. The one marked as ground truth or the first is used.", name)
    chosen = next((x for x in valid if x.get("ground_truth")), valid[0] if valid else {})
    results = chosen.get("result", [])
    if not isinstance(results, list) or not all(isinstance(x, Mapping) for x in results):
        raise UserError(f"The 'result' of {name} is {results!r:.40}, where a list is expected: export it again.")
    objects = [_read_result(x, f"result {i} (counted from 0) of {name}", source) for i, x in enumerate(results)]
    sizes = (_read_size(x, name) for x in results)
    size = next((x for x in sizes if x is not None), None)
    return AnnotatedImage(tuple(_file_names(url)), name, [x for x in objects if x is not None], size, is_relative=True)


def _is_image(value: Any) -> bool:
    return isinstance(value, str) and Path(_path_of(value)).suffix != ""


def _path_of(url: str) -> str:
    """Return the path in a URL; of local files, "/data/local-files/?d=folder/photo.jpg", that in its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0]


def _file_names(url: str) -> Iterator[str]:
    path = _path_of(url).lstrip("/")
    name = Path(path).name
    yield from (path, name)
    prefix, _, rest = name.partition("-")
    if len(prefix) == _PREFIX_LENGTH and rest:
        yield rest


def _read_size(result: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    size = [result.get(key) for key in ("original_height", "original_width")]
    if None in size:
        return None
    return read_size(size, f"The image's size in {name}")


def _read_result(result: Mapping[str, Any], name: str, source: Source) -> AnnotatedObject | None:
    kind, value = result.get("type"), result.get("value")
    if kind not in _LABELS:
        why = _DROPPED.get(str(kind), f"are of type {kind!r:.30}, without a box and a label")
        source.drop(f"results were dropped, since they {why}.", name)
        return None
    if not isinstance(value, Mapping):
        raise UserError(f"The 'value' of {name} is {value!r:.40}: export it again.")
    labels = value.get(_LABELS[kind])
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str) or not labels[0].strip():
        source.drop("results were dropped, since they have no label or several.", name)
        return None
    if result.get("image_rotation") or value.get("rotation"):
        source.drop("results were dropped, since they are rotated boxes or of rotated images.", name)
        return None
    if kind == "polygonlabels":
        polygon = [x / 100 for x in read_points(value.get("points"), f"The polygon of {name}")]
        return AnnotatedObject(name, labels[0].strip(), segmentation=[polygon])
    sides = [value.get(key) for key in ("x", "y", "width", "height")]
    x, y, width, height = (side / 100 for side in read_numbers(sides, f"The box of {name}", 4))
    return AnnotatedObject(name, labels[0].strip(), (x, y, x + width, y + height))
