import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.testing import assert_close

from detr_d2.modeling.denoising import DenoisingQueries
from detr_d2.structures import Targets
from detr_d2.utils.box_ops import cxcywh_to_xyxy

NO_NOISE = ("MODEL.DETR.DENOISING.BOX_NOISE", 0.0, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0)
WITHOUT_NEGATIVES = ("MODEL.DETR.DENOISING.NEGATIVES", False)
INVARIANT = ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True)
BOXES = torch.tensor([[20.0, 20, 60, 40], [10, 30, 50, 90], [40, 10, 80, 70]])


@pytest.fixture
def targets() -> Targets:
    """Return two images of 100 x 100 pixels, with three objects and with one."""
    images = []
    for count in (3, 1):
        instances = Instances((100, 100), gt_boxes=Boxes(BOXES[:count]))
        instances.gt_classes = torch.arange(count)
        images.append(instances)
    return Targets.from_instances(images, "cpu")


def make(**options) -> DenoisingQueries:
    torch.manual_seed(0)
    return DenoisingQueries(num_classes=5, hidden_dim=32, **options)


def test_noise_is_in_its_range(targets):
    """Edges of positives move less than the noise, those of negatives more, up to twice as much."""
    noise = 0.3
    denoising = make(groups=400, box_noise=noise, label_noise=0.0)
    labels, boxes = denoising.noise(targets, copies=2)
    shape = (2, 400, 2, 3)
    distance = cxcywh_to_xyxy(boxes).view(*shape, 4) - cxcywh_to_xyxy(targets.boxes)[:, None, None]
    relative = distance / targets.boxes[:, None, None, :, [2, 3, 2, 3]] * 2
    largest = relative[0].abs()
    assert largest[:, 0].max() <= noise + 1e-5
    assert largest[:, 0].max() > 0.95 * noise
    assert noise - 1e-5 <= largest[:, 1].min() < 1.05 * noise
    assert 1.95 * noise < largest[:, 1].max() <= 2 * noise + 1e-5
    assert abs(relative[0].mean()) < 0.05 * noise
    assert torch.equal(labels.view(shape)[0], targets.labels[0].expand(400, 2, 3))


def test_boxes_stay_in_the_image_and_end_after_they_start(targets):
    _, boxes = make(groups=100, box_noise=2.0).noise(targets, copies=2)
    corners = cxcywh_to_xyxy(boxes)
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6
    assert (boxes[..., 2:] >= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_label_noise(targets, share):
    labels, _ = make(groups=2000, label_noise=share).noise(targets, copies=1)
    changed = (labels.view(2, 2000, 3) != targets.labels[:, None]).float().mean()
    # One in five random classes is the true one.
    assert changed == pytest.approx(share * 4 / 5, abs=0.02)


def test_which_query_belongs_to_which_object(targets):
    noised = make(groups=2)(targets)
    assert noised.block.groups == 2
    assert noised.block.size == 6
    assert noised.pos.shape == noised.content.shape == (2, 12, 32)
    padded = torch.tensor([[False] * 6, [False, True, True] * 2])
    assert torch.equal(noised.block.padding_mask, padded)
    assert torch.equal(noised.ignored, padded.repeat(2, 1))
    assert torch.equal(noised.matches(3), torch.tensor([[0, 1, 2], [0, -1, -1]]).repeat(3, 2, 1))


def test_batch_without_objects():
    """One query, without an object, keeps all parameters in use; it may be attended to."""
    empty = Instances((100, 100), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    noised = make(groups=2, negatives=False)(Targets.from_instances([empty], "cpu"))
    assert noised.pos.shape == (1, 2, 32)
    assert noised.ignored.all()
    assert not noised.block.padding_mask.any()
    assert torch.equal(noised.matches(1), torch.full((1, 2, 1), -1))


@pytest.mark.parametrize("loss", ["softmax", "focal", "matchability"])
@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize("transformer", ["SmcaTransformer", "MultiScaleSmcaTransformer"])
def test_losses_do_not_depend_on_the_batch(make_model, make_inputs, loss, negatives, transformer):
    """Images with different numbers of objects, which padded queries stand for, sum up as they do alone."""
    options = ("MODEL.DETR.DENOISING.GROUPS", 2, *NO_NOISE, *INVARIANT, "MODEL.DETR.DROPOUT", 0.0)
    options += ("MODEL.DETR.DENOISING.NEGATIVES", negatives, "MODEL.DETR.CLASS_LOSS", loss)
    model = make_model(*options, "MODEL.DETR.TRANSFORMER", transformer).train()
    inputs = make_inputs([(64, 64), (64, 96), (96, 64)], [3, 0, 1])
    normalizer = model.normalizer(inputs, 1)
    joint = model(inputs)
    alone = [model([x], normalizer=normalizer) for x in inputs]
    for name, loss in joint.items():
        assert_close(loss, sum(x[name] for x in alone), rtol=1e-4, atol=1e-5, msg=name)


def test_perfect_predictions_have_no_box_loss(make_model, make_inputs, monkeypatch):
    """The boxes of denoising queries are compared with the objects that they were made from."""
    model = make_model("MODEL.DETR.DENOISING.GROUPS", 2, *NO_NOISE, *WITHOUT_NEGATIVES).train()
    inputs = make_inputs([(64, 64)], [3])
    denoising = model.training_queries.denoising
    targets = Targets.from_instances([x["instances"] for x in inputs], "cpu")
    noised = denoising(targets)
    logits = torch.randn(1, 2, 3, 6)
    output = type(model.detr(model.preprocess_image(inputs), all_layers=False))
    boxes = targets.boxes.repeat(2, 1, 1)[None]
    losses = model._denoising_losses(output(logits, boxes), noised, model.normalizer(inputs, 1))
    assert losses["loss_dn_bbox"] == 0
    assert losses["loss_dn_giou"] == pytest.approx(0, abs=1e-5)
    losses = model._denoising_losses(output(logits, boxes.roll(1, 2)), noised, model.normalizer(inputs, 1))
    assert losses["loss_dn_bbox"] > 0.1
