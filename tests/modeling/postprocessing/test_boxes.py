import pytest
import torch
from torch.testing import assert_close

from detr_d2.modeling.postprocessing import box_instances
from detr_d2.structures import Output
from detr_d2.utils.errors import UserError


def predictions(logits):
    """Of an earlier layer that must not count, and of the last."""
    logits = torch.tensor(logits)
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]])
    return Output(torch.stack((-logits, logits))[:, None], boxes.expand(2, 1, 2, 4))


def test_softmax_gives_every_query_its_best_class():
    """Edge case C38: no-object on top of the second query."""
    (instances,) = box_instances(predictions([[4.0, 0.0, 0.0], [0.0, 1.0, 9.0]]), [(100, 200)])
    assert instances.pred_classes.tolist() == [0, 1]
    assert instances.queries.tolist() == [0, 1]
    assert_close(instances.scores[0], torch.tensor([4.0, 0.0, 0.0]).softmax(0)[0])
    assert_close(instances.pred_boxes.tensor, torch.tensor([[0.0, 0.0, 200.0, 100.0], [0.0, 40.0, 100.0, 60.0]]))


def test_focal_ranks_pairs_of_query_and_class():
    """One query under two classes; the last class is no-object, and never found."""
    (instances,) = box_instances(predictions([[-3.0, -2.0, 9.0], [1.0, 2.0, 9.0]]), [(100, 200)], "focal")
    assert instances.pred_classes.tolist() == [1, 0]
    assert instances.queries.tolist() == [1, 1]
    assert_close(instances.scores, torch.tensor([2.0, 1.0]).sigmoid())
    assert_close(instances.pred_boxes.tensor, torch.tensor([[0.0, 40.0, 100.0, 60.0]] * 2))


def test_unknown_ranking():
    with pytest.raises(UserError, match=r"MODEL\.DETR\.CLASS_LOSS is 'hinge'"):
        box_instances(predictions([[0.0, 0.0, 0.0]] * 2), [(100, 200)], "hinge")
