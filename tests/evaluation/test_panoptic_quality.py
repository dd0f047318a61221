"""Panoptic quality against COCO's panopticapi, and cases computed by hand."""

import json

import numpy as np
import pytest
from panopticapi import evaluation
from PIL import Image

from detr_d2.evaluation.panoptic import compute_quality, count_segments, mean_quality

CAT, DOG, SKY = 17, 18, 187


def row(*runs: tuple[int, int]) -> np.ndarray:
    """Return (1, W) ids, from pairs of a number of pixels and their id."""
    return np.concatenate([np.full(n, i) for n, i in runs])[None]


def segments(*classes: int, crowd: tuple[int, ...] = ()) -> list[dict]:
    """Return segments 1, 2, … of these classes."""
    return [{"id": i, "category_id": c, "iscrowd": int(i in crowd)} for i, c in enumerate(classes, 1)]


def counts(x: np.ndarray) -> tuple[float, ...]:
    """Return true positives, false positives, false negatives and the sum of their intersections over union."""
    return tuple(x.tolist())


def test_a_match_has_more_than_half_in_common():
    """6 of 10 is a match; 5 of 10 is a false positive and a false negative."""
    found = count_segments(row((10, 1)), segments(CAT), row((6, 1), (4, 0)), segments(CAT))
    assert counts(found[CAT]) == pytest.approx((1, 0, 0, 0.6))
    found = count_segments(row((10, 1)), segments(CAT), row((5, 1), (5, 0)), segments(CAT))
    assert counts(found[CAT]) == (0, 1, 1, 0)


def test_classes_do_not_mix():
    found = count_segments(row((10, 1)), segments(CAT), row((10, 1)), segments(DOG))
    assert counts(found[CAT]) == (0, 0, 1, 0)
    assert counts(found[DOG]) == (0, 1, 0, 0)


def test_void_is_left_out_of_the_union():
    """Found 6 in the object of 8 and 10 in void: 6 of 8, not 6 of 18."""
    found = count_segments(row((8, 1), (10, 0)), segments(CAT), row((2, 0), (16, 1)), segments(CAT))
    assert counts(found[CAT]) == pytest.approx((1, 0, 0, 0.75))


def test_segments_in_void_are_not_counted():
    """6 of 10 pixels in void; with 5 of 10 it counts."""
    truth = row((6, 0), (10, 1))
    found = count_segments(truth, segments(SKY), row((10, 1), (6, 2)), segments(CAT, SKY))
    assert counts(found[CAT]) == (0, 0, 0, 0)
    assert counts(found[SKY]) == pytest.approx((1, 0, 0, 0.6))
    found = count_segments(row((5, 0), (11, 1)), segments(SKY), row((10, 1), (6, 2)), segments(CAT, SKY))
    assert counts(found[CAT]) == (0, 1, 0, 0)


def test_crowds_are_not_missed_and_segments_of_their_class_are_ignored():
    """Six of ten pixels in a crowd of cats: a cat there does not count, a dog does."""
    truth = row((6, 1), (10, 2))
    annotated = segments(CAT, SKY, crowd=(1,))
    found = count_segments(truth, annotated, row((10, 1), (6, 2)), segments(CAT, SKY))
    assert counts(found[CAT]) == (0, 0, 0, 0)
    found = count_segments(truth, annotated, row((10, 1), (6, 2)), segments(DOG, SKY))
    assert counts(found[DOG]) == (0, 1, 0, 0)
    assert counts(found[CAT]) == (0, 0, 0, 0)


def test_a_crowd_is_never_matched():
    found = count_segments(row((9, 1)), segments(CAT, crowd=(1,)), row((9, 1)), segments(CAT))
    assert counts(found[CAT]) == (0, 0, 0, 0)


def test_void_and_crowd_add_up():
    """3 of 10 in void, 3 in the crowd."""
    truth = row((3, 0), (3, 1), (10, 2))
    found = count_segments(truth, segments(CAT, SKY, crowd=(1,)), row((10, 1), (6, 0)), segments(CAT))
    assert counts(found[CAT]) == (0, 0, 0, 0)
    assert counts(found[SKY]) == (0, 0, 1, 0)


def test_nothing_found_misses_everything():
    """Not one segment is predicted."""
    found = count_segments(row((5, 1), (5, 2)), segments(CAT, SKY), row((10, 0)), [])
    assert counts(found[CAT]) == counts(found[SKY]) == (0, 0, 1, 0)


def test_large_ids_stay_apart():
    """Ids have 24 bits."""
    big = 256**3 - 1
    truth, found = row((4, big), (4, big - 1)), row((4, big - 1), (4, big))
    annotated = [{"id": big, "category_id": CAT}, {"id": big - 1, "category_id": DOG}]
    predicted = [{"id": big, "category_id": DOG}, {"id": big - 1, "category_id": CAT}]
    result = count_segments(truth.astype(np.uint32), annotated, found.astype(np.int32), predicted)
    assert counts(result[CAT]) == counts(result[DOG]) == (1, 0, 0, 1.0)


def test_quality_of_a_class_and_of_several():
    """Equations (1) and (2): two matches of 0.9 and 0.7, a false positive, three missed: 1.6 / (2 + 0.5 + 1.5)."""
    quality = compute_quality(np.array([[2, 1, 3, 1.6], [0, 0, 1, 0], [0, 0, 0, 0]]))
    assert quality[0] == pytest.approx([40, 80, 50])
    assert quality[1].tolist() == [0, 0, 0]
    assert np.isnan(quality[2]).all()
    assert mean_quality(quality) == pytest.approx([20, 40, 25])
    assert np.isnan(mean_quality(quality[2:])).all()
    assert np.isnan(mean_quality(quality[:0])).all()


def random_map(rng: np.random.Generator, size: tuple[int, int], categories: list[int]) -> tuple[np.ndarray, list[dict]]:
    """Return the nearest of a few random points, some void; ids have 24 bits, a class has at most one crowd."""
    points = rng.uniform(0, 1, (9, 2)) * size
    grid = np.stack(np.indices(size), axis=-1)
    nearest = ((grid[:, :, None] - points) ** 2).sum(-1).argmin(-1)
    ids = np.concatenate([[0], rng.choice(np.arange(1, 256**3), 8, replace=False)])
    infos, crowds = [], set()
    for i in ids[1:].tolist():
        area = int((ids[nearest] == i).sum())
        category = int(rng.choice(categories))
        crowd = int(category not in crowds and rng.random() < 0.2)
        crowds |= {category} if crowd else set()
        if area:
            infos.append({"id": i, "category_id": category, "iscrowd": crowd, "area": area})
    return ids[nearest], infos


def disturbed(rng: np.random.Generator, ids: np.ndarray, infos: list[dict]) -> tuple[np.ndarray, list[dict]]:
    """Return a prediction that is often right: shifted a little, some segments of another class, some void."""
    ids = np.roll(ids, rng.integers(-3, 4, 2), axis=(0, 1))
    infos = [{**x, "category_id": int(rng.choice([x["category_id"]] * 3 + [CAT])), "iscrowd": 0} for x in infos]
    kept = [x for x in infos if rng.random() < 0.9]
    ids = np.where(np.isin(ids, [x["id"] for x in kept]), ids, 0)
    return ids, [x for x in kept if (ids == x["id"]).any()]


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_panopticapis(seed, tmp_path):
    """The reference implementation, on random maps with void and crowds."""
    rng = np.random.default_rng(seed)
    categories = {x: {"id": x} for x in (CAT, DOG, SKY)}
    pairs, ours = [], {x: np.zeros(4) for x in categories}
    for folder in ("truth", "found"):
        (tmp_path / folder).mkdir()
    for image in range(6):
        truth, annotated = random_map(rng, (30, 40), list(categories))
        found, predicted = disturbed(rng, truth, annotated)
        for category, x in count_segments(truth, annotated, found, predicted).items():
            ours[category] += x
        name = f"{image}.png"
        for folder, ids in (("truth", truth), ("found", found)):
            write_ids(tmp_path / folder / name, ids)
        pairs.append(
            (
                {"image_id": image, "file_name": name, "segments_info": annotated},
                {"image_id": image, "file_name": name, "segments_info": predicted},
            )
        )
    pairs = json.loads(json.dumps(pairs))
    expected = evaluation.pq_compute_single_core(0, pairs, tmp_path / "truth", tmp_path / "found", categories)
    for category in categories:
        theirs = expected[category]
        assert counts(ours[category]) == pytest.approx((theirs.tp, theirs.fp, theirs.fn, theirs.iou))
    assert all(x[0] and x[2] for x in ours.values())
    assert sum(x[1] for x in ours.values())


def write_ids(path, ids: np.ndarray) -> None:
    """As COCO: red + 256 green + 65536 blue."""
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)).save(path)
