"""One model in several threads: a forward pass leaves nothing on the modules."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

SMCA_MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2),
)
PANOPTIC = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.PANOPTIC.ENABLED", True, "MODEL.DETR.PANOPTIC.NUM_THINGS", 3),
    *("MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", 0.0, "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1),
)
MULTI_SCALE = ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
VARIANTS = {
    "masked forward": SMCA_MASKS,
    "several levels": (*SMCA_MASKS, *MULTI_SCALE),
    "per-image forward": (*SMCA_MASKS, "MODEL.RESNETS.NORM", "GN"),
    "panoptic": PANOPTIC,
}
BATCHES = ([(64, 96), (40, 50)], [(33, 70), (96, 41), (64, 64)])
ROUNDS = 12


def predict(model, inputs: list[dict]) -> list[torch.Tensor]:
    with torch.no_grad():
        results = model(inputs)
    tensors = []
    for result in results:
        instances = result["instances"]
        tensors += [instances.scores, instances.pred_boxes.tensor, instances.pred_masks]
        if "panoptic_seg" in result:
            tensors.append(result["panoptic_seg"][0])
    return tensors


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_results_are_those_of_one_thread(make_model, make_inputs, options):
    """With padded batches of different sizes at the same time."""
    model = make_model(*options)
    batches = [make_inputs(sizes, [0] * len(sizes), seed=i) for i, sizes in enumerate(BATCHES)]
    expected = [predict(model, inputs) for inputs in batches]
    with ThreadPoolExecutor(len(batches)) as threads:
        found = [threads.submit(lambda x=inputs: [predict(model, x) for _ in range(ROUNDS)]) for inputs in batches]
        for rounds, tensors in zip(found, expected, strict=True):
            for other in rounds.result():
                assert all(torch.equal(a, b) for a, b in zip(other, tensors, strict=True))


def attributes(model) -> dict[str, int]:
    """Return the identity of every attribute, parameter, buffer and hook of every module."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[f"{path}.{name}"] = id(value)
            if isinstance(value, dict):
                found.update({f"{path}.{name}.{key}": id(x) for key, x in value.items()})
    return found


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_forward_pass_sets_no_attribute(make_model, make_inputs, options, training):
    model = make_model(*options, "MODEL.DETR.BATCH_INVARIANT_TRAINING", True).train(training)
    inputs = make_inputs(BATCHES[0], [2, 1], masks=True)
    before, state = attributes(model), copy.deepcopy(model.state_dict())
    results = model(inputs)
    if training:
        sum(results.values()).backward()
    assert attributes(model) == before
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
