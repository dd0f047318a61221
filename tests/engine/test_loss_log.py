"""Losses that are read together, as if each step's had been read at once."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from detr_d2.engine.step import LossLog


def losses(iteration: int) -> dict[str, torch.Tensor]:
    """One more of them in odd iterations."""
    extra = {"loss_mask": torch.tensor(0.5)} if iteration % 2 else {}
    return {"loss_ce": torch.tensor(1.0 + iteration), "loss_bbox": torch.tensor(2.0), **extra}


def test_every_step_is_logged_with_its_iteration():
    with EventStorage(4) as storage:
        log = LossLog(period=4)
        for iteration in range(4, 7):
            log.add(iteration, losses(iteration), data_time=0.25)
        assert not storage.histories()
        log.add(7, losses(7), data_time=0.5)
        assert storage.history("loss_ce").values() == [(5.0, 4), (6.0, 5), (7.0, 6), (8.0, 7)]
        assert storage.history("loss_mask").values() == [(0.5, 5), (0.5, 7)]
        assert storage.history("total_loss").values() == [(7.0, 4), (8.5, 5), (9.0, 6), (10.5, 7)]
        assert storage.history("data_time").values() == [(0.25, 4), (0.25, 5), (0.25, 6), (0.5, 7)]
        log.write()
        assert len(storage.history("loss_ce").values()) == 4


def test_losses_are_read_at_once(monkeypatch):
    """Whatever their number."""
    reads = []
    read = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: reads.append(x.numel()) or read(x))
    with EventStorage():
        log = LossLog(period=3)
        for iteration in range(3):
            log.add(iteration, losses(iteration), data_time=0.0)
    # What Detectron2 reads after that are numbers that are on the host already.
    assert reads == [7, *[1] * 7]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    with EventStorage() as storage:
        log = LossLog(period=4)
        log.add(0, losses(0), data_time=0.0)
        assert log.first_bad_iteration() is None
        log.add(1, {**losses(1), "loss_bbox": torch.tensor(value)}, data_time=0.0)
        log.add(2, {**losses(2), "loss_bbox": torch.tensor(value)}, data_time=0.0)
        assert log.first_bad_iteration() == 1
        with pytest.raises(FloatingPointError, match=r"infinite or NaN at iteration=1!\s.*'loss_bbox': \S*(nan|inf)"):
            log.write()
        assert log.first_bad_iteration() is None
        assert storage.history("loss_ce").values() == [(1.0, 0)]
