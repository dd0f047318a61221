"""Scenes of shapes: repeatable, varied, and as difficult as their parameters say."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from detr_d2.data.shapes.scene import STUFF_CLASSES, THING_CLASSES, ShapesSpec, rasterize_outline, sample_scene
from detr_d2.utils.errors import UserError

SPEC = ShapesSpec(num_images=60, seed=3, sides=(64, 96))


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(SPEC, index) for index in range(SPEC.num_images)]


def areas(scene):
    return np.bincount(scene.segments.ravel())[len(scene.stuff) :]


def test_scenes_repeat_and_differ_by_seed_and_index():
    first, again = sample_scene(SPEC, 7), sample_scene(SPEC, 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.segments, again.segments)
    for other in (sample_scene(SPEC, 8), sample_scene(replace(SPEC, seed=4), 7)):
        assert other.image.shape != first.image.shape or not np.array_equal(other.image, first.image)


def test_scenes_are_varied(scenes):
    shapes = {scene.image.shape for scene in scenes}
    assert len(shapes) > 50
    assert all(64 <= side <= 96 for shape in shapes for side in shape[:2])
    counts = [len(scene.things) for scene in scenes]
    assert {0, 1} < set(counts)
    assert 8 <= max(counts) <= 10
    assert {thing for scene in scenes for thing in scene.things} == set(range(len(THING_CLASSES)))
    assert {stuff for scene in scenes for stuff in scene.stuff} == set(range(len(STUFF_CLASSES)))
    sizes = np.concatenate([np.sqrt(areas(scene)) for scene in scenes])
    assert np.percentile(sizes, 95) > 2.5 * np.percentile(sizes, 5)


def test_every_segment_is_visible_and_numbers_have_no_gaps(scenes):
    for scene in scenes:
        assert set(np.unique(scene.segments)) == set(range(len(scene.stuff) + len(scene.things)))
        assert (areas(scene) >= 24).all()


def test_some_objects_overlap_and_some_are_cut_off(scenes):
    cut_off = overlapping = 0
    for scene in scenes:
        boxes = []
        for number in range(len(scene.stuff), len(scene.stuff) + len(scene.things)):
            y, x = np.nonzero(scene.segments == number)
            cut_off += x.min() == 0 or y.min() == 0
            boxes.append((x.min(), y.min(), x.max(), y.max()))
        overlapping += any(
            a is not b and a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a in boxes for b in boxes
        )
    assert cut_off > 10
    assert overlapping > 10


def test_difficulty_makes_objects_small_and_pale():
    easy, hard = (replace(SPEC, difficulty=x, num_images=30) for x in (0.0, 1.0))

    def spread(spec):
        sizes = np.sqrt(np.concatenate([areas(sample_scene(spec, i)) for i in range(30)]))
        return np.percentile(sizes, [10, 90])

    (easy_low, easy_high), (hard_low, hard_high) = spread(easy), spread(hard)
    assert hard_low < 0.7 * easy_low
    assert hard_high / hard_low > 1.5 * easy_high / easy_low
    assert hard.min_contrast < easy.min_contrast
    assert hard.min_visible < easy.min_visible
    assert hard.texture_contrast > easy.texture_contrast


@pytest.mark.parametrize(("difficulty", "right"), [(0.0, (0.75, 1)), (1.0, (0.05, 0.4))])
def test_hues_separate_classes_unless_it_is_difficult(difficulty, right):
    """By the nearest of six equally spaced hues, one sixth would be right by chance."""
    spec = replace(SPEC, difficulty=difficulty)
    hits = []
    for scene in (sample_scene(spec, i) for i in range(30)):
        for number, thing in enumerate(scene.things, start=len(scene.stuff)):
            color = np.median(scene.image[scene.segments == number], axis=0) / 255
            hue, _, _ = colorsys.rgb_to_hsv(*color)
            hits.append(round(hue * len(THING_CLASSES)) % len(THING_CLASSES) == thing)
    assert right[0] <= np.mean(hits) <= right[1]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"num_images": 0}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"sides": (90, 60)}, "sides"),
        ({"sides": (8, 60)}, "sides"),
        ({"difficulty": 1.5}, "difficulty"),
        ({"max_objects": 0}, "max_objects"),
    ],
)
def test_impossible_parameters_are_named(wrong, name):
    with pytest.raises(UserError, match=name):
        replace(SPEC, **wrong)


def test_outlines_have_the_area_of_geometry():
    r = 30.0
    expected = {
        "disc": np.pi * r**2,
        "square": 2 * r**2,
        "triangle": 3 * 3**0.5 / 4 * r**2,
        "ring": np.pi * r**2 * (1 - 0.6**2),
        "cross": (0.92 * r) ** 2 * (4 - 4 * (1 - 0.3) ** 2),
        "star": 5 * 0.42 * r**2 * np.sin(np.pi / 5),
    }
    for name, area in expected.items():
        coverage, whole = rasterize_outline(name, (80, 90), (45.0, 40.0), 2 * r, 0.4)
        assert coverage.sum() == pytest.approx(area, rel=0.02), name
        assert whole == pytest.approx(coverage.sum()), name


def test_outline_is_at_the_requested_center():
    y, x = np.nonzero(rasterize_outline("disc", (80, 90), (30.0, 50.0), 20.0, 0.0)[0] > 0.5)
    assert (x.min(), x.max() + 1, y.min(), y.max() + 1) == (20, 40, 40, 60)


def test_outline_at_the_border_is_cut_off():
    for center in ((0.0, 40.0), (90.0, 40.0), (45.0, 0.0), (45.0, 80.0)):
        coverage, whole = rasterize_outline("disc", (80, 90), center, 30.0, 0.0)
        assert coverage.sum() == pytest.approx(whole / 2, rel=0.03)
    coverage, whole = rasterize_outline("disc", (80, 90), (-40.0, 40.0), 30.0, 0.0)
    assert coverage.sum() == 0
    assert whole == pytest.approx(np.pi * 15**2, rel=0.03)
