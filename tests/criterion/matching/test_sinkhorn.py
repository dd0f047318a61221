import json

import numpy as np
import pytest
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import build_model
from scipy.optimize import linear_sum_assignment
from torch.utils._python_dispatch import TorchDispatchMode

from detr_d2.criterion.matching import MatchingCost, SinkhornMatcher, build_matcher
from detr_d2.data import DetrDatasetMapper
from detr_d2.structures import Output, Targets
from detr_d2.utils.errors import UserError

CLASSES = 80


def random_boxes(*size, generator):
    center = torch.rand(*size, 2, generator=generator)
    return torch.cat((center, 0.02 + 0.5 * torch.rand(*size, 2, generator=generator) ** 2), -1)


def predict_near(boxes, labels, queries, generator):
    """Predict as a trained model: half of the queries find the class of an object, all are near one."""
    source = torch.randint(len(labels), (queries,), generator=generator)
    spread = 0.1 * 10 ** (-2 * torch.rand(queries, 1, generator=generator))
    near = (boxes[source] + spread * torch.randn(queries, 4, generator=generator)).clamp(0.01, 0.99)
    logits = torch.randn(queries, CLASSES + 1, generator=generator)
    named = torch.where(torch.rand(queries, generator=generator) < 0.5, labels[source], CLASSES)
    logits[torch.arange(queries), named] += 10 * torch.rand(queries, generator=generator)
    return logits, near


def make_problem(kind, queries, objects, generator):
    """Return a cost (queries, objects), of random numbers or of random predictions."""
    if kind == "uniform":
        return torch.rand(queries, objects, generator=generator)
    if kind == "normal":
        return torch.randn(queries, objects, generator=generator)
    labels = torch.randint(CLASSES, (objects,), generator=generator)
    boxes = random_boxes(objects, generator=generator)
    if kind == "crowd":
        labels = torch.full((objects,), 3)
        boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]) + 0.03 * torch.randn(objects, 4, generator=generator)
    if kind == "untrained":
        logits = torch.randn(queries, CLASSES + 1, generator=generator)
        predictions = logits, random_boxes(queries, generator=generator)
    else:
        predictions = predict_near(boxes, labels, queries, generator)
    return detr_cost(*predictions, boxes, labels)


def detr_cost(logits, boxes, object_boxes, labels):
    targets = Targets(labels[None], object_boxes[None], (len(labels),))
    return MatchingCost()(Output(logits[None, None], boxes[None, None]), targets)[0, 0]


def gaps(problems, **options):
    """Return the distance from the minimum cost, relative to the minimum, and to the distance of a random matching."""
    counts = tuple(x.shape[1] for x in problems)
    cost = torch.zeros(1, len(problems), problems[0].shape[0], max(counts))
    for i, problem in enumerate(problems):
        cost[0, i, :, : counts[i]] = problem
    matches = SinkhornMatcher(**options)(cost, counts)[0].numpy()
    relative, to_random = [], []
    for problem, count, match in zip(problems, counts, matches, strict=True):
        problem = problem.double().numpy()
        assert len(set(match[:count].tolist())) == count
        assert match[:count].min() >= 0
        minimum = problem[linear_sum_assignment(problem)].sum()
        more = problem[match[:count], range(count)].sum() - minimum
        relative.append(more / abs(minimum))
        to_random.append(more / max(count * problem.mean() - minimum, 1e-9))
    return np.array(relative), np.array(to_random)


@pytest.mark.parametrize("kind", ["uniform", "normal", "untrained", "trained", "crowd"])
def test_within_one_percent_of_the_optimum(kind):
    """A thousand matrices in all, some of full size."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 31, (180,), generator=generator).tolist()
    problems = [make_problem(kind, 40, objects, generator) for objects in sizes]
    large = [make_problem(kind, 100, objects, generator) for objects in range(3, 63, 3)]
    for batch in (problems, large):
        relative, to_random = gaps(batch)
        assert relative.max() < 0.01
        assert to_random.max() < 0.01


def test_within_one_percent_on_real_objects(real_data):
    """Queries near the objects of COCO images."""
    found = json.loads((real_data / "coco" / "annotations" / "instances_val2017.json").read_text())
    sizes = {x["id"]: torch.tensor([x["width"], x["height"]] * 2) for x in found["images"]}
    generator = torch.Generator().manual_seed(2)
    problems = []
    for image, size in sizes.items():
        objects = [x for x in found["annotations"] if x["image_id"] == image]
        if objects:
            boxes = torch.tensor([x["bbox"] for x in objects]) / size
            boxes[:, :2] += boxes[:, 2:] / 2
            labels = torch.tensor([x["category_id"] % CLASSES for x in objects])
            problems.append(detr_cost(*predict_near(boxes, labels, 100, generator), boxes, labels))
    assert len(problems) > 40
    relative, to_random = gaps(problems)
    assert relative.max() < 0.01
    assert to_random.max() < 0.01


def test_within_one_percent_on_real_images(real_data, make_cfg):
    """Costs of a small, untrained model for images of COCO."""
    cfg = make_cfg(
        *("MODEL.DETR.NUM_CLASSES", 91, "MODEL.DETR.NUM_OBJECT_QUERIES", 100),
        *("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MAX_SIZE_TRAIN", 128, "INPUT.CROP.ENABLED", False),
    )
    folder = real_data / "coco"
    records = load_coco_json(str(folder / "annotations" / "instances_val2017.json"), str(folder / "val2017"))
    mapper = DetrDatasetMapper(cfg, is_train=True)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    seen = []

    def matcher(cost, counts):
        seen.extend(cost[layer, image, :, :count] for layer in range(len(cost)) for image, count in enumerate(counts))
        return SinkhornMatcher()(cost, counts)

    model.criterion.matcher = matcher
    losses = model([mapper(x) for x in records[:8]])
    assert all(x.isfinite() for x in losses.values())
    problems = [x for x in seen if x.shape[1]]
    assert len(problems) >= 20
    relative, to_random = gaps(problems)
    assert relative.max() < 0.01
    assert to_random.max() < 0.01


@pytest.mark.parametrize(("queries", "objects"), [(7, 4), (5, 5), (4, 6)])
@pytest.mark.parametrize("momentum_from", [0, 1000])
def test_the_transport_plan(queries, objects, momentum_from):
    """Compare with Sinkhorn's plain iteration, in float64, of a square with objects or queries that cost nothing."""
    cost = torch.rand(1, 1, queries, objects + 2, generator=torch.Generator().manual_seed(7))
    matcher = SinkhornMatcher(epsilon=0.1, threshold=0.0, max_iterations=500, momentum_from=momentum_from)
    plan, problem, _, columns = matcher.transport(cost, (objects,))
    size = max(queries, objects)
    square = np.zeros((size, size))
    square[:objects] = problem[0, :objects, columns[0]].double().numpy()
    kernel = np.exp(-square / 0.1)
    of_columns = np.ones(size)
    for _ in range(2000):
        of_rows = 1 / (kernel @ of_columns)
        of_columns = 1 / (kernel.T @ of_rows)
    expected = of_rows[:, None] * kernel * of_columns
    np.testing.assert_allclose(plan[0, :objects, columns[0]].exp().numpy(), expected[:objects], atol=1e-4)


class NoSync(TorchDispatchMode):
    """Refusal of functions that make the host wait for a device."""

    WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} makes the host wait"
        assert name != "index" or not any(x is not None and x.dtype == torch.bool for x in args[1]), "a boolean index"
        result = func(*args, **(kwargs or {}))
        if name == "_to_copy" and result.device != args[0].device:
            assert kwargs.get("non_blocking"), "a copy that waits"
        return result


@pytest.mark.parametrize(("queries", "width"), [(20, 7), (5, 7)])
def test_the_host_never_waits_for_the_device(queries, width):
    """On a device without values, reading one fails."""
    cost = torch.empty(3, 2, queries, width, device="meta")
    with NoSync():
        matches = SinkhornMatcher()(cost, (width, 2))
    assert matches.device.type == "meta"
    assert matches.shape == (3, 2, width)
    assert matches.dtype == torch.int64


class DeviceTensor(torch.Tensor):
    """A tensor on the CPU whose ``is_cpu`` is False."""

    is_cpu = False


def test_stopping_early_changes_nothing():
    """The CPU stops when all problems have converged; a device continues."""
    generator = torch.Generator().manual_seed(3)
    cost = torch.stack([make_problem("trained", 30, 12, generator) for _ in range(6)]).view(2, 3, 30, 12)
    early = SinkhornMatcher()(cost, (12, 5, 9))
    late = SinkhornMatcher()(cost.as_subclass(DeviceTensor), (12, 5, 9))
    assert early.tolist() == late.tolist()


def test_offset_of_the_cost_makes_no_difference():
    generator = torch.Generator().manual_seed(4)
    cost = make_problem("trained", 30, 12, generator)[None, None].double().round(decimals=3).float()
    moved = (cost.double() + 64).float()
    assert SinkhornMatcher()(moved, (12,)).tolist() == SinkhornMatcher()(cost, (12,)).tolist()


def test_momentum_and_decay_converge_faster():
    """Without swaps, which would hide the differences."""
    generator = torch.Generator().manual_seed(5)
    problems = [make_problem("crowd", 50, 40, generator) for _ in range(30)]
    mean = {
        name: gaps(problems, swap_sweeps=0, **options)[1].mean()
        for name, options in {
            "default": {},
            "no momentum": {"momentum_from": 1000},
            "no decay": {"epsilon_init": 1.0},
            "no iterations": {"max_iterations": 0},
        }.items()
    }
    assert mean["default"] < mean["no momentum"] < mean["no decay"] < mean["no iterations"]


def test_swaps_improve_the_rounded_matching():
    generator = torch.Generator().manual_seed(6)
    problems = [make_problem("untrained", 50, 30, generator) for _ in range(20)]
    without, with_swaps = (gaps(problems, max_iterations=0, swap_sweeps=sweeps)[1].mean() for sweeps in (0, 20))
    assert with_swaps < 0.5 * without


def test_not_finite_on_a_device_is_left_to_the_loss():
    matches = SinkhornMatcher()(torch.full((1, 1, 6, 3), float("nan")).as_subclass(DeviceTensor), (3,))
    assert len(set(matches[0, 0].tolist())) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("EPSILON", 0.0),
        ("EPSILON_INIT", 0.5),
        ("EPSILON_DECAY", 1.0),
        ("MAX_ITERATIONS", -1),
        ("THRESHOLD", -0.1),
        ("MOMENTUM_FROM", -1),
        ("SWAP_SWEEPS", -1),
    ],
)
def test_refused_values_name_their_key(make_cfg, key, value):
    key = f"MODEL.DETR.SINKHORN.{key}"
    with pytest.raises(UserError, match=rf"{key} is {value}: set "):
        build_matcher(make_cfg("MODEL.DETR.MATCHER", "SinkhornMatcher", key, value))


def test_config_and_constructor_agree(make_cfg):
    assert vars(build_matcher(make_cfg("MODEL.DETR.MATCHER", "SinkhornMatcher"))) == vars(SinkhornMatcher())
    built = build_matcher(make_cfg("MODEL.DETR.MATCHER", "SinkhornMatcher", "MODEL.DETR.SINKHORN.EPSILON", 0.5))
    assert built.epsilon == 0.5
