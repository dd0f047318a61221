"""Dense supervision: its assignment and losses against loops, and what it leaves as it is."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from detr_d2.modeling.dense_supervision import assign, locations
from detr_d2.structures import Memory, Targets
from detr_d2.utils.errors import UserError

DENSE = ("MODEL.DETR.DENSE_WEIGHT", 0.3)
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = (
    *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "matchability"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
)
MASKS = ("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 64, "MODEL.DETR.NHEADS", 8)
INVARIANT = ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True)
NO_DROPOUT = ("MODEL.DETR.DROPOUT", 0.0)


def make_memory(sizes: list[tuple[int, int]], stride: int = 16) -> Memory:
    """Return memory of images of these heights and widths in pixels, padded to the largest."""
    height, width = (-(-max(x) // stride) for x in zip(*sizes, strict=True))
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for row, (h, w) in zip(mask, sizes, strict=True):
        row[: -(-h // stride), : -(-w // stride)] = False
    image_sizes = torch.tensor([(w, h) for h, w in sizes]) / stride
    return Memory(torch.randn(len(sizes), 8, height, width), mask, image_sizes)


def make_targets(counts: list[int], seed: int) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(len(counts), max(counts), 2, 2, generator=generator).sort(2).values.flatten(2)
    boxes = box_convert(corners, "xyxy", "cxcywh")
    # Some are smaller than a feature.
    boxes[:, ::3, 2:] /= 20
    return Targets(torch.randint(5, boxes.shape[:2], generator=generator), boxes, tuple(counts))


def assigned_by_loops(memory: Memory, targets: Targets, image: int) -> dict[int, int]:
    """Return the object of every location that has one."""
    width, height = memory.image_sizes[image].tolist()
    columns = memory.tensor.shape[-1]
    places = [((i % columns + 0.5), (i // columns + 0.5)) for i in range(columns * memory.tensor.shape[-2])]
    chosen: dict[int, tuple[float, int]] = {}
    for index in range(targets.counts[image]):
        cx, cy, w, h = (x * y for x, y in zip(targets.boxes[image, index].tolist(), [width, height] * 2, strict=True))
        inside = [
            i for i, (x, y) in enumerate(places) if abs(x - cx) < min(w / 2, 1.5) and abs(y - cy) < min(h / 2, 1.5)
        ]
        nearest = min(range(len(places)), key=lambda i: (places[i][0] - cx) ** 2 + (places[i][1] - cy) ** 2)
        for i in {*inside, nearest}:
            chosen[i] = min(chosen.get(i, (float("inf"), -1)), (w * h, index))
    return {i: index for i, (_, index) in chosen.items()}


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_that_of_loops(seed):
    memory = make_memory([(128, 160), (96, 200)])
    targets = make_targets([9, 4], seed)
    assigned, matches = assign(memory, locations(memory), targets)
    for image in range(2):
        expected = assigned_by_loops(memory, targets, image)
        assert {i for i, match in enumerate(matches[0, image].tolist()) if match >= 0} == expected.keys()
        for location, index in expected.items():
            assert matches[0, image, location] == location
            assert assigned.labels[image, location] == targets.labels[image, index]
            assert torch.equal(assigned.boxes[image, location], targets.boxes[image, index])


def test_small_objects_have_a_location():
    """Also where a larger one lies over them."""
    memory = make_memory([(128, 128)])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.51, 0.51, 0.001, 0.001]]])
    assigned, matches = assign(memory, locations(memory), Targets(torch.tensor([[0, 1]]), boxes, (2,)))
    found = assigned.labels[0][matches[0, 0] >= 0]
    assert (found == 1).sum() == 1
    assert (found == 0).sum() == 3


@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_padding_is_no_object(counts):
    targets = Targets(torch.zeros(2, max(counts), dtype=torch.long), torch.rand(2, max(counts), 4), counts)
    memory = make_memory([(64, 64), (64, 96)])
    _, matches = assign(memory, locations(memory), targets)
    assert (matches[0, 1] == -1).all()
    assert (matches[0, 0] >= 0).any() == bool(counts[0])


def test_losses_are_those_of_loops(make_model, make_inputs):
    """Focal loss of every location that is not padded; L1 and GIoU of those with an object, per object of the batch."""
    model = make_model(*SMCA, *DENSE, *NO_DROPOUT).train()
    inputs = make_inputs([(64, 96), (96, 64)], [3, 2])
    batch = model.preprocess_image(inputs)
    _, memory = model.detr.forward_with_memory(batch, all_layers=True)
    output = model.dense_supervision.predict(memory, locations(memory))
    logits, boxes = output.logits[0], output.boxes[0]
    targets = model._targets(inputs)
    sums = dict.fromkeys(("ce", "bbox", "giou"), 0.0)
    for image in range(2):
        chosen = assigned_by_loops(memory, targets, image)
        for location in range(logits.shape[1]):
            if memory.padding_mask[image].flatten()[location]:
                continue
            target = torch.zeros(logits.shape[-1])
            if location in chosen:
                target[targets.labels[image, chosen[location]]] = 1
                box = targets.boxes[image, chosen[location]]
                predicted = boxes[image, location]
                sums["bbox"] += (box - predicted).abs().sum()
                corners = (box_convert(x, "cxcywh", "xyxy") for x in (predicted, box))
                sums["giou"] += generalized_box_iou_loss(*corners, reduction="sum")
            sums["ce"] += sigmoid_focal_loss(logits[image, location], target, reduction="sum")
    losses = model(inputs)
    weights = model.criterion.weights
    for name, value in sums.items():
        assert_close(losses[f"loss_dense_{name}"], 0.3 * weights[f"loss_{name}"] * value / 5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [(), SMCA, MULTI_SCALE, MASKS], ids=["DETR", "SMCA", "levels", "masks"])
def test_other_losses_stay(make_model, make_inputs, options):
    model = make_model(*DENSE, *NO_DROPOUT, *options).train()
    plain = make_model(*NO_DROPOUT, *options).train()
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if name in plain.state_dict()})
    inputs = make_inputs([(64, 64), (64, 96)], [2, 0], masks="MODEL.MASK_ON" in options)
    losses, expected = model(inputs), plain(inputs)
    assert losses.keys() - expected.keys() == {"loss_dense_ce", "loss_dense_bbox", "loss_dense_giou"}
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss)


def test_padding_changes_nothing(make_model, make_inputs):
    """The losses of a batch are those of its images alone, divided by the batch's number of objects."""
    model = make_model(*SMCA, *DENSE, *INVARIANT, *NO_DROPOUT).train()
    inputs = make_inputs([(64, 64), (96, 70)], [2, 1])
    normalizer = model.normalizer(inputs, 1)
    together = model(inputs)
    alone = [model([x], normalizer=normalizer) for x in inputs]
    for name in ("loss_dense_ce", "loss_dense_bbox", "loss_dense_giou"):
        assert_close(together[name], sum(x[name] for x in alone), rtol=1e-4, atol=1e-6)


def test_frozen_boxes_refuse_it(make_model):
    with pytest.raises(UserError, match=r"which MODEL\.DETR\.FROZEN_WEIGHTS keeps"):
        make_model(*MASKS, *DENSE, "MODEL.DETR.FROZEN_WEIGHTS", "box.pth")


def test_negative_weight(make_model):
    with pytest.raises(UserError, match=r"MODEL\.DETR\.DENSE_WEIGHT"):
        make_model("MODEL.DETR.DENSE_WEIGHT", -1.0)


def test_plain_models_have_none(make_model):
    assert make_model().dense_supervision is None
