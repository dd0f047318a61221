"""Files of the trackers, read back; and a tracker as a writer of another Detectron2 project."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_d2.engine.tracking import Events, RunInfo
from detr_d2.engine.tracking.backends import CsvTracker, TensorBoardTracker


@pytest.fixture
def run(tmp_path) -> RunInfo:
    return RunInfo("project", "run", str(tmp_path), {"SOLVER": {"BASE_LR": 0.1}, "SEED": 3})


def read_rows(run: RunInfo) -> list[dict[str, str]]:
    with open(Path(run.output_dir, "metrics.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_columns_of_a_csv_file_are_added_when_they_come(run):
    tracker = CsvTracker(run)
    tracker.open()
    tracker.log(0, Events({"loss": 2.5}))
    tracker.log(1, Events({"AP, small": 7.0, "loss": float("nan")}))
    tracker.log(2, Events({"AP, small": 8.0}))
    assert read_rows(run) == [
        {"iteration": "0", "loss": "2.5", "AP, small": ""},
        {"iteration": "1", "loss": "nan", "AP, small": "7.0"},
        {"iteration": "2", "loss": "", "AP, small": "8.0"},
    ]


def test_a_resumed_csv_file_ends_where_its_run_goes_on(run):
    tracker = CsvTracker(run)
    tracker.open()
    for step in range(4):
        tracker.log(step, Events({"loss": float(step), "lr": 0.1}))
    with open(Path(run.output_dir, "metrics.csv"), "a") as file:
        file.write("4,0.")
    resumed = CsvTracker(run, step=2)
    resumed.open()
    resumed.log(3, Events({"loss": 30.0, "lr": 0.1}))
    assert [(x["iteration"], x["loss"]) for x in read_rows(run)] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "30.0"),
    ]


def test_a_resumed_run_whose_csv_file_is_gone_starts_one(run):
    tracker = CsvTracker(run, step=2)
    tracker.open()
    tracker.log(3, Events({"loss": 1.0}))
    assert read_rows(run) == [{"iteration": "3", "loss": "1.0"}]


def test_a_tracker_is_a_writer_of_any_storage(run):
    """The images and histograms that other projects put there arrive; writing twice sends nothing twice."""
    tracker = TensorBoardTracker(run)
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(3, 2, 3)
    with EventStorage(5) as storage:
        storage.put_scalar("loss", 1.5)
        storage.put_image("bytes", pixels)
        storage.put_image("floats", torch.full((3, 2, 3), 0.5))
        storage.put_histogram("weights", torch.tensor([1.0, 2.0, 4.0]))
        tracker.write()
        tracker.write()
        storage.iter = 6
        storage.put_scalar("loss", 2.5)
        tracker.write()
    tracker.close()
    tracker.close()
    events = EventAccumulator(run.output_dir)
    events.Reload()
    # The second is the median of the two, as Detectron2's writers smooth.
    assert [(x.step, x.value) for x in events.Scalars("loss")] == [(5, 1.5), (6, 2.0)]
    assert [(x.step, x.width, x.height) for x in events.Images("bytes")] == [(5, 3, 2)]
    assert [x.step for x in events.Images("floats")] == [5]
    ((step, histogram),) = [(x.step, x.histogram_value) for x in events.Histograms("weights")]
    assert (step, histogram.min, histogram.max, histogram.sum) == (5, 1.0, 4.0, 7.0)
    (text,) = events.Tensors("config/text_summary")
    assert "| SOLVER.BASE_LR | 0.1 |\n| SEED | 3 |" in text.tensor_proto.string_val[0].decode()
