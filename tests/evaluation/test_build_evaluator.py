"""Evaluators by dataset and config."""

import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators

from detr_d2.data.panoptic import coco_panoptic_categories
from detr_d2.engine import Trainer, trainer
from detr_d2.evaluation import DetrCOCOEvaluator, PanopticEvaluator, build_evaluator, check_evaluation
from detr_d2.utils.errors import UserError

BOXES = ()
PANOPTIC = ("MODEL.DETR.PANOPTIC.ENABLED", True)
INSTANCES = "instances_val2017.json"


@pytest.fixture
def register(request, real_data):
    """Return a function that registers a dataset of boxes, or of panoptic examples, with or without instances."""
    names = []

    def add(*, panoptic: bool, instances: str | None = None) -> str:
        name = f"{request.node.name}_{len(names)}"
        names.append(name)
        examples = real_data / "coco_panoptic"
        metadata = MetadataCatalog.get(name)
        metadata.set(json_file=instances and str(real_data / "coco" / "annotations" / instances))
        if panoptic:
            metadata.set(panoptic_json=str(examples / "panoptic_examples.json"), evaluator_type="coco_panoptic_seg")
            metadata.set(panoptic_root=str(examples / "panoptic_examples"), **coco_panoptic_categories().metadata())
        return name

    yield add
    for name in names:
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("dataset", "options", "expected"),
    [
        ({"panoptic": False, "instances": INSTANCES}, BOXES, [DetrCOCOEvaluator]),
        ({"panoptic": False, "instances": INSTANCES}, PANOPTIC, [DetrCOCOEvaluator]),
        ({"panoptic": True, "instances": INSTANCES}, BOXES, [DetrCOCOEvaluator]),
        ({"panoptic": True, "instances": INSTANCES}, PANOPTIC, [DetrCOCOEvaluator, PanopticEvaluator]),
        ({"panoptic": True}, PANOPTIC, [PanopticEvaluator]),
        ({"panoptic": True, "instances": "not_there.json"}, PANOPTIC, [PanopticEvaluator]),
    ],
)
def test_evaluators(register, make_cfg, tmp_path, dataset, options, expected):
    evaluator = build_evaluator(make_cfg(*options), register(**dataset), str(tmp_path))
    found = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    assert [type(x) for x in found] == expected


def test_a_panoptic_dataset_alone_needs_panoptic_results(register, make_cfg, tmp_path):
    name = register(panoptic=True)
    with pytest.raises(UserError, match=r"PANOPTIC.ENABLED True"):
        build_evaluator(make_cfg(), name, str(tmp_path))


def test_the_trainer_checks_before_it_trains(register, make_cfg, real_data, monkeypatch):
    """Not at its first evaluation, hours later."""
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", 133, "DATASETS.TRAIN", (), "DATASETS.TEST", (register(panoptic=True),))
    monkeypatch.setattr(trainer, "check_datasets", lambda cfg: None)
    monkeypatch.setattr(Trainer, "build_model", None)
    with pytest.raises(UserError, match=r"panoptic annotations only.*no --val-json"):
        Trainer(cfg)


def test_stuff_before_things(register, make_cfg):
    """AP counts things from the first row; panoptic quality does not."""
    name = register(panoptic=True, instances=INSTANCES)
    metadata = MetadataCatalog.get(name)
    things, stuff = (metadata.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("thing", "stuff"))
    for table, shift in ((things, len(stuff)), (stuff, -len(things))):
        table.update({i: row + shift for i, row in table.items()})
    cfg = make_cfg(*PANOPTIC)
    with pytest.raises(UserError, match="the things are not the first classes"):
        check_evaluation(cfg, name)
    del metadata.json_file
    check_evaluation(cfg, name)
