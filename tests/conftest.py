"""Fixtures of the tests of several subpackages."""

import logging
import os
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.logger import setup_logger
from detr.models.detr import DETR
from detr.models.segmentation import DETRsegm
from detr.util.box_ops import box_xyxy_to_cxcywh
from detr.util.misc import NestedTensor, nested_tensor_from_tensor_list

from benchmarks.models import build_original_criterion, original_network, with_original_mask_head
from detr_d2 import add_detr_config

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images and annotations."""
    folder = Path(os.environ.get("DETR_D2_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "coco" / "annotations").is_dir():
        reason = f"no real data in {folder}: set DETR_D2_TEST_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(autouse=True)
def forget_loggers():
    """Remove the handlers that a test adds to loggers, since pytest closes the captured output they write to."""
    yield
    setup_logger.cache_clear()
    for name in ("detectron2", "detr_d2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def in_float64(monkeypatch):
    """Compute in float64, losses and boxes included."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def in_this_process(monkeypatch) -> type:
    """Run the benchmark's implementations in this process, and return the class that counts those that are open.

    Processes of their own take seconds to start.
    """

    class ThisProcess:
        opened = 0

        def __init__(self, target, name, checkout):
            self.target = target

        def call(self, method):
            return getattr(self.target, method)()

        def __enter__(self):
            ThisProcess.opened += 1
            return self

        def __exit__(self, *error):
            ThisProcess.opened -= 1

    monkeypatch.setattr("benchmarks.comparison.WorkerProcess", ThisProcess)
    monkeypatch.setattr("benchmarks.comparison.keep_freed_memory", lambda: None)
    return ThisProcess


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def catalogs():
    """Remove the datasets that a test registers, and restore those that it removes."""
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    yield
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(entries)


@pytest.fixture
def run_script(tmp_path, monkeypatch, capfd, catalogs):
    """Return a function that runs a script in the test's folder, as ``python SCRIPT ARGUMENT...`` does.

    It runs in this process: a new one would take seconds to import the packages.
    """

    def run(name: str, *arguments: object) -> CompletedProcess:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / name), run_name="__main__")
        torch.set_num_threads(threads)
        return CompletedProcess(sys.argv, end.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def make_cfg():
    """Return a function that makes the config of a small DETR: ``make_cfg("MODEL.DETR.PRE_NORM", True, …)``.

    With ``MODEL.MASK_ON`` the ResNet returns all levels that a mask head reads, unless the options set them.
    """

    def make(*options) -> CfgNode:
        cfg = get_cfg()
        add_detr_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / "configs" / "Base-DETR.yaml"))
        small = {
            "MODEL.WEIGHTS": "",
            "MODEL.DEVICE": "cpu",
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.DETR.NUM_CLASSES": 5,
            "MODEL.DETR.NUM_OBJECT_QUERIES": 7,
            "MODEL.DETR.HIDDEN_DIM": 32,
            "MODEL.DETR.NHEADS": 4,
            "MODEL.DETR.DIM_FEEDFORWARD": 48,
            "MODEL.DETR.ENC_LAYERS": 2,
            "MODEL.DETR.DEC_LAYERS": 3,
        }
        cfg.merge_from_list([x for pair in small.items() for x in pair])
        cfg.merge_from_list(list(options))
        if cfg.MODEL.MASK_ON and "MODEL.RESNETS.OUT_FEATURES" not in options:
            cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        return cfg

    return make


@pytest.fixture(scope="session")
def make_model(make_cfg):
    """Return a function that builds a small DETR with moderate random weights, in evaluation mode."""

    def make(*options, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = build_model(make_cfg(*options))
        randomize(model)
        return model.eval()

    return make


@pytest.fixture
def catalog():
    """Return a function that registers a dataset for one test: ``catalog(name, records, thing_classes=[…])``."""
    names = []

    def register(name, records, **metadata):
        names.append(name)
        DatasetCatalog.register(name, lambda: records)
        return MetadataCatalog.get(name).set(**metadata)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def real_coco(monkeypatch, request, catalogs):
    """Return a function that registers COCO's datasets in a folder, by default that of the real data."""

    def register(folder=None) -> None:
        folder = request.getfixturevalue("real_data") if folder is None else folder
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
        for name in [x for x in DatasetCatalog.list() if x.startswith(("coco_", "keypoints_coco_"))]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_all_coco(str(folder))

    return register


@pytest.fixture
def save_trained(tmp_path, make_cfg, make_model):
    """Return a function that saves a small random model and its config, as a training run does, and returns the paths.

    The config is that of the model, except for the keys in ``config``.
    """

    def save(*options, class_names: list[str] | None = None, config: tuple = ()) -> tuple[Path, Path]:
        options = ("INPUT.MIN_SIZE_TEST", 64, *options)
        weights, config_file = tmp_path / "model_final.pth", tmp_path / "config.yaml"
        names = {} if class_names is None else {"class_names": class_names}
        torch.save({"model": make_model(*options).state_dict(), "iteration": 9, **names}, weights)
        config_file.write_text(make_cfg(*options, *config).dump())
        return config_file, weights

    return save


@pytest.fixture(scope="session")
def make_original():
    """Return a function that builds the original network for a config, with random weights, in evaluation mode."""

    def make(cfg: CfgNode, seed: int = 0, num_classes: int | None = None) -> DETR:
        torch.manual_seed(seed)
        model = original_network(cfg, cfg.MODEL.DETR.NUM_CLASSES if num_classes is None else num_classes)
        randomize(model)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_original_segmentation(make_original):
    """Return ``make_original`` with the original's mask head: ``HIDDEN_DIM`` is 128 or 256, and ``NHEADS`` 8."""

    def make(cfg: CfgNode, seed: int = 0, num_classes: int | None = None) -> DETRsegm:
        model = with_original_mask_head(cfg, make_original(cfg, seed, num_classes))
        for module in model.mask_head.modules():
            if isinstance(module, torch.nn.GroupNorm):
                torch.nn.init.normal_(module.weight, 1.0, 0.1)
                torch.nn.init.normal_(module.bias, 0.0, 0.1)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_original_criterion():
    """Return a function that builds the original criterion for a config; its ``weight_dict`` holds the weights."""
    return build_original_criterion


@pytest.fixture(scope="session")
def make_inputs():
    """Return a function that makes a batch as the mapper does: an image and ``count`` objects per size."""

    def make(
        sizes: list[tuple[int, int]], counts: list[int], num_classes: int = 5, seed: int = 0, masks: bool = False
    ) -> list[dict]:
        # Two, so that masks change neither images nor boxes.
        generator, mask_generator = (torch.Generator().manual_seed(seed) for _ in range(2))
        inputs = []
        for i, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
            corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
            boxes = corners * torch.tensor([width, height, width, height])
            instances = Instances((height, width), gt_boxes=Boxes(boxes))
            instances.gt_classes = torch.randint(num_classes, (count,), generator=generator)
            if masks:
                instances.gt_masks = BitMasks(torch.rand(count, height, width, generator=mask_generator) < 0.3)
            image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
            inputs.append({"image": image, "instances": instances, "file_name": f"image_{i}.jpg"})
        return inputs

    return make


@pytest.fixture(scope="session")
def original_batch():
    """Return a function that converts our inputs to the original's: normalized samples, and targets."""

    def make(inputs: list[dict], cfg: CfgNode) -> tuple[NestedTensor, list[dict]]:
        mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1) / 255
        std = torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1) / 255
        samples = nested_tensor_from_tensor_list([(x["image"].float() / 255 - mean) / std for x in inputs])
        targets = []
        for x in inputs:
            height, width = x["instances"].image_size
            boxes = x["instances"].gt_boxes.tensor / torch.tensor([width, height, width, height])
            targets.append({"labels": x["instances"].gt_classes, "boxes": box_xyxy_to_cxcywh(boxes)})
        return samples, targets

    return make


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Fill every tensor with random values, so that all differ and the features stay moderate in size."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dim() == 1 and "class_weights" not in name:
            # Scales and biases: of norms around one, of layers around zero.
            is_scale = "norm" in name and name.endswith("weight")
            tensor.normal_(0.7 if is_scale else 0.0, 0.1)
