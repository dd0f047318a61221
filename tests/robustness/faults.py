"""Faults to plant in the inputs of the commands, as changes of their content or of their bytes."""

import copy
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.robustness.inputs import HEIGHT, JSONS, WIDTH

Fault = Callable[[bytes, random.Random], bytes]

_WRONG = (None, "yes", "12", [], {}, [[1]], -1, 1.5, 10**400, float("nan"), float("inf"), True)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave out the end."""
    return data[: rng.randrange(1, len(data) * 9 // 10)]


def garbage(data: bytes, rng: random.Random) -> bytes:
    """Replace everything by random bytes."""
    return rng.randbytes(rng.randrange(1, 500))


def empty(data: bytes, rng: random.Random) -> bytes:
    """Leave nothing."""
    return b""


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes anywhere, of which the file may stay valid."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def nested(data: bytes, rng: random.Random) -> bytes:
    """Nest lists and objects 200,000 deep."""
    return rng.choice((b"[", b'{"images":')) * 200_000


def change(*path: str | int, values: tuple = _WRONG) -> Fault:
    """Return a fault that gives the value at a path in a JSON file another type or range; ``...`` removes it."""

    def fault(data: bytes, rng: random.Random) -> bytes:
        content = json.loads(data)
        *parents, last = path
        parent = content
        for key in parents:
            parent = parent[key]
        value = rng.choice(values)
        if value is ...:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(value)
        return json.dumps(content).encode()

    return fault


def repeat(*path: str) -> Fault:
    """Return a fault that lists the first item of a list twice."""

    def fault(data: bytes, rng: random.Random) -> bytes:
        content = json.loads(data)
        content[path[0]].append(content[path[0]][0])
        return json.dumps(content).encode()

    return fault


def other_json(data: bytes, rng: random.Random) -> bytes:
    """Replace the content by JSON of another kind."""
    other = [json.dumps(make()).encode() for make in JSONS.values()]
    return rng.choice([x for x in other if x != data] + [b"3", b'"text"', b"null", b"[]", b"{}"])


def png(width: int, height: int) -> Fault:
    """Return a fault that makes a small PNG which claims another size."""

    def fault(data: bytes, rng: random.Random) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(bytes(3 * WIDTH * HEIGHT)))
        return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")

    return fault


class _Run:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("escaped"),)


def _pickled(content: Any) -> Fault:
    return lambda data, rng: pickle.dumps(content)


def _saved(change: Callable[[dict], Any]) -> Fault:
    def fault(data: bytes, rng: random.Random) -> bytes:
        content, buffer = torch.load(io.BytesIO(data), weights_only=True), io.BytesIO()
        torch.save(change(content), buffer)
        return buffer.getvalue()

    return fault


def _with_tensors(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Fault:
    return _saved(lambda content: {"model": {name: change(name, x) for name, x in content["model"].items()}})


def zip_bomb(data: bytes, rng: random.Random) -> bytes:
    """Compress 128 megabytes of zeros as the storage of a tensor."""
    source, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    largest = max(source.infolist(), key=lambda x: x.file_size).filename
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in source.namelist():
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(128 if name == largest else 0):
                    file.write(bytes(1 << 20))
                if name != largest:
                    file.write(source.read(name))
    return buffer.getvalue()


def overlapping(data: bytes, rng: random.Random) -> bytes:
    """Let all entries of the archive start where the first one does."""
    start = data.index(b"PK\x01\x02")
    changed = bytearray(data)
    while (start := data.find(b"PK\x01\x02", start)) >= 0:
        changed[start + 42 : start + 46] = bytes(4)
        start += 4
    return bytes(changed)


_BYTES = {"cut": cut, "garbage": garbage, "empty": empty}
_IN_JSON = {**_BYTES, "nested": nested, "other": other_json}
FAULTS: dict[str, dict[str, Fault]] = {
    "coco": {
        **_IN_JSON,
        "image id twice": repeat("images"),
        "image width": change("images", 0, "width", values=("40", None, -3, 0, [40], 1.5, ...)),
        "image id": change("images", 0, "id", values=(None, [1], {}, ...)),
        "image file": change("images", 0, "file_name", values=(None, 3, [], "nul\0byte.png", "../nowhere.png", ...)),
        "box": change("annotations", 0, "bbox", values=(*_WRONG[1:-1], "5678", ["2", "3", "4", "5"], [1, 2, 3], ...)),
        "number in box": change(
            "annotations", 0, "bbox", 2, values=(None, "3", [], 10**400, float("nan"), float("inf"))
        ),
        "category": change("annotations", 0, "category_id", values=(None, "cat", [], -1, 99, 1.5, ...)),
        "crowd": change("annotations", 0, "iscrowd", values=("yes", "0", 7, [1], None)),
        "run": change("annotations", 1, "segmentation", "counts", 1, values=(-10, "ten", None, 10**400)),
        "runs": change("annotations", 1, "segmentation", "counts", values=(None, 3, {}, "\x7f\x7f", "é", [])),
        "images": change("images", values=(None, {}, [], "text", [3], [None], ...)),
        "categories": change("categories", values=(None, {}, [], [3], [{"id": "1", "name": "cat"}], ...)),
        "annotations": change("annotations", values=(None, {}, "text", [3], [None])),
    },
    "panoptic": {
        **_IN_JSON,
        "image": change("annotations", 0, "image_id", values=(None, 99, [], ...)),
        "map": change("annotations", 0, "file_name", values=(None, 3, "../nowhere.png", "nul\0byte", ...)),
        "segments": change("annotations", 0, "segments_info", values=(None, 3, [3], [None], ...)),
        "segment": change("annotations", 0, "segments_info", 0, "id", values=(None, "7", 99, [], ...)),
        "category": change("annotations", 0, "segments_info", 0, "category_id", values=(None, "1", 99, [], ...)),
        "categories": change("categories", values=(None, {}, [], [3], [{"id": 1, "name": "cat"}], ...)),
        "images": change("images", values=(None, {}, [], [3], ...)),
    },
    "via": {
        **_IN_JSON,
        "file": change(
            "1.png123", "filename", values=(None, 3, [], "nowhere.png", "../../etc/passwd", "nul\0byte", ...)
        ),
        "regions": change("1.png123", "regions", values=(3, "text", [3], [None], [[]])),
        "shape": change("1.png123", "regions", 0, "shape_attributes", values=(None, 3, {}, {"name": "star"}, ...)),
        "number": change(
            "1.png123", "regions", 0, "shape_attributes", "x", values=(None, "two", [], 10**400, float("nan"), ...)
        ),
        "points": change(
            "1.png123", "regions", 1, "shape_attributes", "all_points_x", values=(None, 3, [], [1], ["a"] * 3, ...)
        ),
    },
    "labelme": {
        **_IN_JSON,
        "shapes": change("shapes", values=(None, 3, {}, "text", [3], [None], ...)),
        "points": change("shapes", 0, "points", values=(None, 3, [], [[1, 2]], [[1, "x"]] * 2, [[1e999, 2]] * 2, ...)),
        "number": change("shapes", 1, "points", 0, values=(None, "two", [], [1], [10**400, 1], [float("nan"), 1])),
        "image": change("imagePath", values=(None, 3, [], "nowhere.png", "../../etc/passwd", "nul\0byte", ...)),
        "size": change("imageWidth", values=(3, "wide", [], -1, float("nan"), 10**400)),
    },
    "voc": {
        **_BYTES,
        "bomb": lambda data, rng: b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>' + data,
        "nested": lambda data, rng: b"<annotation>" * 200_000,
        "number": lambda data, rng: data.replace(b"12", rng.choice((b"", b"twelve", b"nan", b"1e999", b"&amp;"))),
        "size": lambda data, rng: data.replace(b"<width>40", rng.choice((b"<width>41", b"<width>wide", b"<width>-1"))),
        "class": lambda data, rng: data.replace(b"cat", b""),
        "image": lambda data, rng: data.replace(b"1.png", rng.choice((b"../nowhere.png", b"", b"/etc/passwd"))),
        "no box": lambda data, rng: data.replace(b"bndbox", b"box"),
        "root": lambda data, rng: data.replace(b"annotation", b"notation"),
    },
    "yolo": {
        "garbage": garbage,
        "empty": empty,
        "nested": lambda data, rng: b"names: " + b"[" * 200_000,
        "code": lambda data, rng: data + b"x: !!python/object/apply:os.getcwd []\n",
        "aliases": lambda data, rng: b"a: &a [x, x]\nb: &b [*a, *a]\n" + data,
        "names": lambda data, rng: data.replace(b"[cat, dog]", rng.choice((b"3", b"[]", b"[[cat]]", b"{7: cat}"))),
        "few names": lambda data, rng: data.replace(b", dog", b""),
        "no folder": lambda data, rng: data.replace(
            b"[images]", rng.choice((b"nowhere", b"3", b"[]", b"../../etc/passwd"))
        ),
    },
    "results": {
        **_BYTES,
        "nested": nested,
        "image": change(0, "image_id", values=(None, 99, "1", [], {}, ...)),
        "category": change(0, "category_id", values=(None, 99, "1", [], {}, ...)),
        "score": change(0, "score", values=(None, "high", [], {}, float("nan"), ...)),
        "box": change(0, "bbox", values=(None, "text", [], [1, 2, 3], ["a"] * 4, {}, [None] * 4, ...)),
    },
    "image": {
        **_BYTES,
        "bomb": png(60_000, 60_000),
        "too large a size": png(WIDTH, 20 * HEIGHT),
        "no size": png(0, 0),
    },
    "map": {**_BYTES, "bomb": png(60_000, 60_000), "other size": png(WIDTH // 2, HEIGHT), "no size": png(0, 0)},
    "config": {
        "code": lambda data, rng: (
            data + b"\nX: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [escaped]]\n"
        ),
        "garbage": garbage,
        "empty": empty,
        "nested": lambda data, rng: b"MODEL: " + b"[" * 200_000,
        "own base": lambda data, rng: b"_BASE_: config.yaml\n",
        "no base": lambda data, rng: b"_BASE_: /nowhere/../nowhere.yaml\n",
        "unknown key": lambda data, rng: data + b"\nMODLE: {}\n",
        "type": lambda data, rng: b"MODEL: {DETR: {NHEADS: [1]}}\n",
        "list": lambda data, rng: b"- 1\n- 2\n",
        "section": lambda data, rng: b"MODEL: 3\n",
        "tab": lambda data, rng: b"MODEL:\n\tDETR: 3\n",
    },
    "weights": {
        **_BYTES,
        "code": _pickled(_Run()),
        "list": _pickled([1, 2]),
        "names": _pickled({"model": {1: 2}}),
        "texts": _pickled({"model": {"detr.query_embed.weight": "text"}}),
        "other shapes": _with_tensors(lambda name, x: x[:1] if x.dim() else x),
        "scalars": _with_tensors(lambda name, x: torch.tensor(1.0)),
        "flat": _with_tensors(lambda name, x: x.flatten()),
        "complex": _with_tensors(lambda name, x: x.to(torch.complex64)),
        "text types": _saved(lambda content: {"model": dict.fromkeys(content["model"], "text")}),
        "bool": _with_tensors(lambda name, x: x.bool()),
        "no tensors": _saved(lambda content: {"model": {}}),
        "deep": _saved(lambda content: {"model": {"model": {"model": content}}}),
        "zip bomb": zip_bomb,
        "overlapping": overlapping,
    },
    "metrics": {
        "garbage": garbage,
        "empty": empty,
        "nested": nested,
        "lists": lambda data, rng: b"[1, 2]\n" * 3,
        "texts": lambda data, rng: b'{"iteration": "one", "total_loss": "high"}\n' * 3,
    },
}
