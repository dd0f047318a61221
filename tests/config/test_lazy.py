"""LazyConfigs: loading, overrides, and that they describe the models and trainings of the YAML configs."""

import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from omegaconf import ListConfig
from torch import nn

from detr_d2.config import find_config, load_config, load_lazy_config
from detr_d2.data import DetrDatasetMapper
from detr_d2.data.augmentation import build_augmentation
from detr_d2.engine import build_optimizer
from detr_d2.utils.errors import UserError

CONFIGS = {
    "detr_r50": "detr_256_6_6_torchvision",
    "detr_r50_dc5": "detr_256_6_6_torchvision_dc5",
    "detr_segm_r50_panoptic": "detr_segm_256_6_6_torchvision_panoptic",
    "smca_r50_type3": "smca_r50_type3",
    "smca_shapes_cpu": "smca_shapes_cpu",
}
"""LazyConfigs and the YAML configs that they are equal to."""
PLAIN = (bool, int, float, str, type(None))


def settings(x: object) -> dict:
    """Return the attributes of a module or another object that are plain values, or objects that hold such values."""
    found = {}
    for name, value in vars(x).items():
        if name == "_reversed_padding_repeated_twice":
            # Only other paddings than with zeros use it; the package changes the padding of a built convolution.
            continue
        if isinstance(value, PLAIN):
            found[name] = value
        elif isinstance(value, tuple | list | ListConfig):
            found[name] = [v if isinstance(v, PLAIN) else str(v) for v in value]
        elif type(value).__module__.startswith("detr_d2.") and not isinstance(value, nn.Module):
            found[name] = (type(value).__name__, settings(value) if hasattr(value, "__dict__") else str(value))
    return found


def described(augmentations: Sequence[T.Augmentation]) -> list[str]:
    """Return augmentations as texts, with those that they contain."""
    texts = []
    for x in augmentations:
        if isinstance(x, T.RandomApply):
            texts += [f"with probability {x.prob}", *described(x.aug.augs)]
        else:
            # Lists of numbers are of several types.
            texts.append(re.sub(r"[()\[\]]", "", str(x)))
    return texts


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """Return a lazy and a YAML config."""
    return load_lazy_config(f"lazy/{request.param}"), load_config(CONFIGS[request.param], ["MODEL.DEVICE", "meta"])


def test_models_are_equal(pair):
    """Their modules, parameters and settings; without memory for the weights."""
    lazy, yaml = pair
    with torch.device("meta"):
        ours, reference = instantiate(lazy.model), build_model(yaml)
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (ours, reference)]
    assert shapes[0] == shapes[1]
    assert repr(ours) == repr(reference)
    for (name, x), (_, y) in zip_longest(ours.named_modules(), reference.named_modules()):
        assert type(x) is type(y), name
        assert settings(x) == settings(y), name
    trainable = [[x.requires_grad for x in model.parameters()] for model in (ours, reference)]
    assert trainable[0] == trainable[1]


def test_learning_rates_are_equal(pair):
    lazy, yaml = pair
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    lazy.optimizer.params.model = model
    ours, reference = instantiate(lazy.optimizer), build_optimizer(yaml, model)
    lazy.optimizer.params.model = None
    assert type(ours) is type(reference)
    for x, y in zip(ours.param_groups, reference.param_groups, strict=True):
        differing = {key for key in x if key != "params" and x[key] != y[key]} - {"fused"}
        assert not differing
        assert all(a is b for a, b in zip(x["params"], y["params"], strict=True))
    multiplier, scheduler = instantiate(lazy.lr_multiplier), build_lr_scheduler(yaml, reference)
    last = yaml.SOLVER.MAX_ITER
    assert lazy.train.max_iter == last
    drops = [*yaml.SOLVER.STEPS, *(x - 1 for x in yaml.SOLVER.STEPS)]
    for iteration in (0, 1, 30, *(x for x in drops if x < last), last - 1):
        expected = scheduler._multiplier(iteration / last)
        assert multiplier(iteration / last) == pytest.approx(expected, rel=1e-6)


def test_gradients_are_clipped_over_the_full_model():
    cfg = load_lazy_config("lazy/detr_r50", ["optimizer.max_norm=0.5"])
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2, bias=False)})
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    optimizer.step()
    # Eight equal values whose norm is 0.5.
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.grad, torch.full((2, 2), 0.5 / 8**0.5))


@pytest.mark.parametrize("is_train", [True, False])
def test_images_are_augmented_alike(pair, is_train):
    lazy, yaml = pair
    mapper = instantiate(lazy.dataloader["train" if is_train else "test"].mapper)
    assert isinstance(mapper, DetrDatasetMapper)
    assert mapper.is_train == is_train
    assert mapper.with_masks == (is_train and yaml.MODEL.MASK_ON)
    assert described(mapper.augmentations.augs) == described(build_augmentation(yaml, is_train))


def test_data_are_those_of_the_yaml_config(pair):
    lazy, yaml = pair
    data, solver = lazy.dataloader, yaml.SOLVER
    assert tuple(data.train.records.names) == yaml.DATASETS.TRAIN
    assert (data.test.dataset.dataset_name,) == yaml.DATASETS.TEST
    assert (data.train.batch_size, data.train.num_workers) == (solver.IMS_PER_BATCH, yaml.DATALOADER.NUM_WORKERS)
    assert data.test.dataset.batch_size == data.test.batch_size == yaml.TEST.BATCH_SIZE
    assert (lazy.train.eval_period, lazy.train.checkpointer.period) == (yaml.TEST.EVAL_PERIOD, solver.CHECKPOINT_PERIOD)
    assert (lazy.train.init_checkpoint, lazy.train.frozen_weights) == (
        yaml.MODEL.WEIGHTS,
        yaml.MODEL.DETR.FROZEN_WEIGHTS,
    )


def test_overrides_change_the_model():
    options = ["model.network.num_queries=9", "model.network.num_classes=4", "model.network.transformer.enc_layers=0"]
    cfg = load_lazy_config("lazy/smca_shapes_cpu", [*options, "model.score_threshold=0.25", "+note=mine"])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.detr.query_embed.weight.shape == (9, 128)
    assert model.detr.class_embed.weight.shape == (5, 128)
    assert model.criterion.num_classes == 4
    assert len(model.detr.transformer.encoder.layers) == 0
    # An argument that the file leaves at its default.
    assert model.score_threshold == 0.25
    assert cfg.note == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_queries=50", "has no key model.num_queries. Did you mean model.network.num_queries?"),
        ("model.network.num_querys=50", "Did you mean model.network.num_queries"),
        ("train.max_itre=5", "Did you mean train.max_iter"),
        ("model.network.transformer.enc_layer=5", "Did you mean model.network.transformer.enc_layers"),
        ("MODEL.DEVICE", "written key=value; MODEL.DEVICE is not"),
        ("train.max_iter=[", "In option train.max_iter=[: "),
        ("train.device.name=cpu", "has no key train.device.name"),
    ],
)
def test_wrong_overrides_are_explained(override, message):
    with pytest.raises(UserError) as error:
        load_lazy_config("lazy/smca_shapes_cpu", [override])
    assert message in str(error.value)


def test_arguments_of_bases_are_known():
    """SmcaTransformer passes ``**transformer`` on to DetrTransformer."""
    base = load_lazy_config("lazy/smca_shapes_cpu", ["model.network.transformer.pre_norm=True"])
    assert base.model.network.transformer.pre_norm is True
    del base.model.network.transformer.pre_norm
    file = Path(find_config("lazy/smca_shapes_cpu"))
    assert LazyConfig.load(str(file)).model.network.transformer.pre_norm is False


def test_files_of_users_need_trust(tmp_path):
    """A file elsewhere may build on one of this package."""
    file = tmp_path / "mine.py"
    ran = tmp_path / "ran"
    file.write_text(
        "from detr_d2.config import load_lazy_config\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "_base = load_lazy_config('lazy/smca_shapes_cpu')\n"
        "model, train, dataloader = _base.model, _base.train, _base.dataloader\n"
        "train.max_iter = 7\n"
    )
    with pytest.raises(UserError, match=r"mine.py is a Python program, which is run .* add --trust"):
        load_lazy_config(str(file))
    assert not ran.exists()
    cfg = load_lazy_config(str(file), trust=True)
    assert ran.exists()
    assert cfg.train.max_iter == 7
    assert cfg.dataloader.evaluator.output_dir == "./output/inference"


def test_syntax_errors_are_one_message(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("train = dict(\nmodel = 3 3\n")
    with pytest.raises(UserError, match=r"mine.py is not valid Python: .*, line \d"):
        load_lazy_config(str(file), trust=True)


def test_commands_for_yaml_configs_refuse_them(repository):
    with pytest.raises(UserError, match=r"smca_shapes_cpu.py is a LazyConfig, which only `detr-d2 train`"):
        load_config("lazy/smca_shapes_cpu")
    assert Path(find_config("lazy/detr_r50.py")) == repository / "configs" / "lazy" / "detr_r50.py"
    with pytest.raises(UserError, match=r"Did you mean .*lazy/detr_r50\?"):
        find_config("lazy/detr_r5")
