"""Random damages of files, read by the readers of the package: a UserError or a result, never a crash."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from detr_d2.checkpoint.reading import read_checkpoint
from detr_d2.data.annotations import read_targets
from detr_d2.data.checks import check_loaded, load_coco
from detr_d2.data.images import read_image
from detr_d2.data.panoptic.segments import read_segment_map
from detr_d2.data.rle import to_rle
from detr_d2.utils.errors import ExampleCounter, UserError
from tests.robustness.faults import cut, flip
from tests.robustness.inputs import HEIGHT, WIDTH, write_inputs


def _read_coco(path: Path) -> None:
    check_loaded([load_coco(str(path), str(path.parent), train=True)], 2, masks=True)


def _read_rle(path: Path) -> None:
    dropped = ExampleCounter()
    for item in json.loads(path.read_bytes()):
        to_rle(item, (HEIGHT, WIDTH), "an annotation", dropped)
        read_targets([{"bbox": item.get("counts"), "bbox_mode": 1, "category_id": 0}], "an image", (9, 9), dropped)


READERS: dict[str, Callable[[Path], object]] = {
    "weights": lambda path: read_checkpoint(str(path)),
    "coco": _read_coco,
    "rle": _read_rle,
    "image": lambda path: read_image(str(path), "RGB"),
    "map": lambda path: read_segment_map(str(path), (HEIGHT, WIDTH)),
}
_RLES = [
    {"size": [HEIGHT, WIDTH], "counts": "Vh01k08H5L3N1O0O100000O2N3Mf"},
    {"size": [HEIGHT, WIDTH], "counts": [605, 10, 585]},
]


def damage(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Read ``count`` damaged files, of each kind in turn; return the errors that are not explained."""
    files = write_inputs(folder / "valid")
    files["rle"] = folder / "valid" / "rle.json"
    files["rle"].write_text(json.dumps(_RLES))
    path, problems = folder / "damaged", []
    content = {kind: files[kind].read_bytes() for kind in READERS}
    for number in range(count):
        kind, rng = list(READERS)[number % len(READERS)], random.Random(seed + number)
        path.write_bytes(rng.choice((cut, flip))(content[kind], rng))
        try:
            READERS[kind](path)
        except UserError:
            pass
        except Exception as e:
            is_json = kind == "rle" and isinstance(e, ValueError | AttributeError)
            if not is_json:
                problems.append(f"{kind}, seed {seed + number}: {type(e).__name__}: {e}")
    return problems
