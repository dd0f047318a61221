import copy
import logging
import pickle
from collections import Counter

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from detr_d2.utils.errors import UserError


def test_output_size_is_the_inputs_by_default(make_model, make_inputs):
    model = make_model()
    resized, plain = make_inputs([(64, 96), (64, 96)], [0, 0])
    plain["image"] = resized["image"]
    resized["height"], resized["width"] = 640, 480
    with torch.no_grad():
        large, own = (x["instances"] for x in model([resized, plain]))
    assert large.image_size == (640, 480)
    assert own.image_size == (64, 96)
    scale = torch.tensor([480 / 96, 640 / 64] * 2)
    assert_close(large.pred_boxes.tensor, own.pred_boxes.tensor * scale, rtol=1e-4, atol=1e-3)


def test_no_object_is_never_predicted(make_model, make_inputs):
    """Where no-object is most probable, the best foreground class is returned."""
    model = make_model()
    with torch.no_grad():
        model.detr.class_embed.bias[-1] = 50.0
        instances = model(make_inputs([(64, 64)], [0]))[0]["instances"]
    assert instances.pred_classes.max() < 5
    assert instances.scores.max() < 1e-6
    assert len(instances) == 7


def test_copies_pickles_and_moves(make_model, make_inputs):
    """Also before and after a forward pass."""
    model = make_model()
    untouched = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    inputs = make_inputs([(64, 64)], [0])
    with torch.no_grad():
        expected = model(inputs)[0]["instances"].pred_boxes.tensor
        for twin in (*untouched, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(inputs)[0]["instances"].pred_boxes.tensor, expected)
        double = copy.deepcopy(model).to(torch.float64)
        assert double.pixel_mean.dtype == torch.float64
        assert_close(double(inputs)[0]["instances"].pred_boxes.tensor.float(), expected, rtol=1e-3, atol=1e-3)
    meta = copy.deepcopy(model).to("meta")
    assert meta.device.type == meta.criterion.class_weights.device.type == "meta"


def test_results_after_training_and_inference_mode(make_model, make_inputs):
    """A position embedding that was cached in inference mode can be used in training."""
    model = make_model()
    inputs = make_inputs([(64, 64)], [2])
    with torch.inference_mode():
        model(inputs)
    model.train()
    sum(model(inputs).values()).backward()
    assert model.detr.transformer.encoder.layers[0].linear1.weight.grad is not None


def test_same_image_alone_and_in_a_batch_of_its_size(make_model, make_inputs):
    """Without padding, results do not depend on the other images."""
    model = make_model()
    inputs = make_inputs([(64, 96)] * 3, [0] * 3)
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert_close(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor, rtol=1e-4, atol=1e-4)
        assert_close(a["instances"].scores, b["instances"].scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (500, 2)], ids=str)
def test_tiny_and_narrow_images(make_model, make_inputs, size):
    """Padded together with a larger one."""
    with torch.no_grad():
        results = make_model()(make_inputs([size, (64, 64)], [0, 0]))
    for result in results:
        assert torch.isfinite(result["instances"].pred_boxes.tensor).all()


@pytest.mark.parametrize("counts", [[0, 0], [0, 3]], ids=str)
@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_every_parameter_has_a_gradient(make_model, make_inputs, counts, positions):
    """Also without any object, as distributed training needs it."""
    model = make_model("MODEL.DETR.POSITION_EMBEDDING", positions).train()
    losses = model(make_inputs([(64, 64), (64, 96)], counts))
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_more_objects_than_queries_warns_once(make_model, make_inputs, caplog, monkeypatch):
    # Detectron2 counts messages in the process, also those of other tests.
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    model = make_model().train()
    inputs = make_inputs([(64, 64)], [9])
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        model(inputs)
        model(inputs)
    messages = [r.getMessage() for r in caplog.records if "NUM_OBJECT_QUERIES" in r.getMessage()]
    assert len(messages) == 1
    assert "image_0.jpg has 9 objects" in messages[0]


def test_training_without_instances(make_model, make_inputs):
    inputs = make_inputs([(64, 64)], [1])
    del inputs[0]["instances"]
    with pytest.raises(UserError, match=r"image_0.jpg has none.*is_train=True"):
        make_model().train()(inputs)


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([0, 0, 5, 5], 5, r"class 5, but MODEL.DETR.NUM_CLASSES 5 allows 0 to 4"),
        ([0, 0, 5, 5], -1, "class -1"),
        ([5, 0, 0, 5], 0, "ends before it starts"),
        ([0, 0, float("nan"), 5], 0, "not finite"),
        ([0, 0, float("inf"), 5], 0, "not finite"),
    ],
)
def test_bad_targets_name_the_image(make_model, make_inputs, box, label, message):
    """Errors of targets are not reported as errors of predictions."""
    inputs = make_inputs([(64, 64)], [0])
    boxes = Boxes(torch.tensor([box], dtype=torch.float32))
    inputs[0]["instances"] = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([label]))
    with pytest.raises(UserError, match=f"image_0.jpg.*{message}"):
        make_model().train()(inputs)


def test_nan_in_the_model_names_the_images(make_model, make_inputs):
    model = make_model().train()
    with torch.no_grad():
        model.detr.bbox_embed.layers[2].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"decoder layer 0 .*image_0.jpg"):
        model(make_inputs([(64, 64)], [1]))


def test_metrics_go_to_the_event_storage(make_model, make_inputs):
    """Such as class_error and cardinality_error, which are not part of total_loss."""
    model = make_model().train()
    with EventStorage(start_iter=19) as storage:
        losses = model(make_inputs([(64, 64)], [2]))
    assert not set(storage.latest()) & set(losses)
    assert storage.latest()["unweighted/bbox"][0] == pytest.approx(losses["loss_bbox"].item() / 5, rel=1e-5)
    assert {"class_error", "cardinality_error", "unweighted/ce_0"} <= set(storage.latest())


def test_only_the_last_layer_predicts_in_inference(make_model, make_inputs):
    model = make_model()
    shapes = []
    model.detr.class_embed.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with torch.no_grad():
        model(make_inputs([(64, 64)], [0]))
    assert shapes == [(1, 1, 7, 6)]


def test_state_dict_has_the_original_wrappers_names(make_model):
    prefixes = {
        ".".join(name.split(".")[:2]) for name in make_model("MODEL.DETR.POSITION_EMBEDDING", "learned").state_dict()
    }
    parts = ("backbone", "bbox_embed", "class_embed", "input_proj", "query_embed", "transformer")
    assert prefixes == {f"detr.{part}" for part in parts}
