import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import nms

from detr_d2.modeling.postprocessing import box_instances, resized_masks
from detr_d2.structures import Output
from detr_d2.utils.errors import UserError


def make_output(logits):
    """Return predictions of an earlier layer, which must not count, and of the last."""
    logits = torch.tensor(logits)
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]])
    return Output(torch.stack((-logits, logits))[:, None], boxes.expand(2, 1, 2, 4))


def test_softmax_ranks_the_best_class_of_every_query():
    """Also for a query whose most probable class is no-object."""
    (instances,) = box_instances(make_output([[4.0, 0.0, 0.0], [0.0, 1.0, 9.0]]), [(100, 200)])
    assert instances.pred_classes.tolist() == [0, 1]
    assert instances.queries.tolist() == [0, 1]
    assert_close(instances.scores[0], torch.tensor([4.0, 0.0, 0.0]).softmax(0)[0])
    assert_close(instances.pred_boxes.tensor, torch.tensor([[0.0, 0.0, 200.0, 100.0], [0.0, 40.0, 100.0, 60.0]]))


def test_focal_ranks_pairs_of_query_and_class():
    """One query is found under two classes; no-object, the last class, is never found."""
    (instances,) = box_instances(make_output([[-3.0, -2.0, 9.0], [1.0, 2.0, 9.0]]), [(100, 200)], "focal")
    assert instances.pred_classes.tolist() == [1, 0]
    assert instances.queries.tolist() == [1, 1]
    assert_close(instances.scores, torch.tensor([2.0, 1.0]).sigmoid())
    assert_close(instances.pred_boxes.tensor, torch.tensor([[0.0, 40.0, 100.0, 60.0]] * 2))


def test_class_thresholds():
    """A detection has the minimum score of its own class, and that of all classes."""
    logits = [[2.0, -1.0, 9.0], [1.0, -2.0, 9.0]]  # Scores of class 0: 0.88 and 0.73; of class 1: 0.27 and 0.12.
    for thresholds, minimum, expected in (
        ((0.8, 0.2), 0.0, [0.88]),
        ((0.0, 0.9), 0.0, [0.88, 0.73]),
        ((0.0, 0.0), 0.8, [0.88]),
    ):
        (instances,) = box_instances(make_output(logits), [(100, 200)], "focal", minimum, thresholds)
        assert_close(instances.scores, torch.tensor(expected), atol=5e-3, rtol=0)


def test_unknown_ranking():
    with pytest.raises(UserError, match=r"MODEL\.DETR\.CLASS_LOSS is 'hinge'"):
        box_instances(make_output([[0.0, 0.0, 0.0]] * 2), [(100, 200)], "hinge")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_masks_are_those_of_the_original_steps(seed, threshold):
    """The lines of PostProcessSegm, for random sizes."""
    generator = torch.Generator().manual_seed(seed)
    padded, output = (torch.randint(1, 200, (2,), generator=generator).tolist() for _ in range(2))
    image = [int(torch.randint(1, x + 1, (1,), generator=generator)) for x in padded]
    logits = torch.randn(6, *(-(-x // 4) for x in padded), generator=generator) * 3
    masks = resized_masks(logits, padded_size=padded, image_size=image, output_size=output, threshold=threshold)
    expected = F.interpolate(logits[None], size=padded, mode="bilinear", align_corners=False).sigmoid() > threshold
    expected = F.interpolate(expected[..., : image[0], : image[1]].float(), size=output, mode="nearest")[0]
    assert masks.shape == (6, *output)
    assert (masks != expected.bool()).float().mean() < 1e-4


def test_a_mask_probability_at_the_threshold_is_too_low():
    """As in the original; a logit of 0 is a probability of exactly a half."""
    sizes = {"padded_size": (4, 4), "image_size": (4, 4), "output_size": (4, 4)}
    assert not resized_masks(torch.zeros(1, 2, 2), **sizes).any()
    assert resized_masks(torch.full((1, 2, 2), 1e-6), **sizes).all()


def test_no_masks():
    masks = resized_masks(torch.zeros(0, 3, 4), padded_size=(12, 16), image_size=(12, 16), output_size=(5, 6))
    assert masks.shape == (0, 5, 6)
    assert masks.dtype == torch.bool


def make_crowd(num_boxes=40, seed=0):
    """Return the predictions of boxes in one place, of three classes, with a focal head."""
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.5 + 0.1 * torch.rand(1, 1, num_boxes, 4, generator=generator)
    return Output(torch.randn(1, 1, num_boxes, 4, generator=generator), boxes)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_is_that_of_every_class(threshold):
    """Torchvision's, one class after the other; the order stays."""
    (every,) = box_instances(make_crowd(), [(100, 200)], "softmax")
    (found,) = box_instances(make_crowd(), [(100, 200)], "softmax", nms_threshold=threshold)
    expected = []
    for label in range(3):
        rows = (every.pred_classes == label).nonzero()[:, 0]
        expected += rows[nms(every.pred_boxes.tensor[rows], every.scores[rows], threshold)].tolist()
    assert found.queries.tolist() == sorted(expected)
    assert len(expected) < len(every)
    assert torch.equal(found.scores, every.scores[sorted(expected)])
