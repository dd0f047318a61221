"""Predictor: a trained model, from a config and a checkpoint, for images without annotations; and its classes."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from detr_d2.checkpoint import DetrCheckpointer, read_checkpoint
from detr_d2.checkpoint.class_head import coco_head_by_ids, coco_head_contiguous, head_rows
from detr_d2.checkpoint.formats import to_native
from detr_d2.config import TRAINING_ONLY, file_channels, load_config, log_pixel_warnings
from detr_d2.data.bands import check_bands
from detr_d2.data.images import to_tensor
from detr_d2.inference.optimization import inference_options, optimize_for_inference
from detr_d2.inference.tiled_model import with_tiles
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

# Number of batches whose images are sorted by size together.
_WINDOW = 4
# Weights that training starts from.
_BACKBONES = ("torchvision://", "detectron2://ImageNetPretrained/")

Key = TypeVar("Key")
Prepare = Callable[[nn.Module, CfgNode, Sequence[str]], nn.Module]


@dataclass(frozen=True)
class Categories:
    """A name and a category id for every class of a model, in the order of its head's rows."""

    names: list[str]
    ids: list[int]


class Predictor:
    """Detector of the objects in images, several at a time.

    Images are batched with images of similar size. The results do not depend on the batch, unless
    ``MODEL.DETR.BATCH_INVARIANT`` is False. ``image_format`` is "RGB" or "BGR", ``INPUT.FORMAT``; ``channels`` is
    ``INPUT.CHANNELS``. Unless it is 3, images have as many bands as :func:`~detr_d2.data.images.read_image` returns.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        categories: Categories,
        channels: int = 3,
    ):
        self.model = model.eval()
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.categories = categories
        self.channels = channels

    @classmethod
    def from_config(cls, cfg: CfgNode, prepare: Prepare | None = None) -> "Predictor":
        """Build the model of a config, load every tensor of ``MODEL.WEIGHTS``, and optimize it as the config says.

        ``prepare`` returns what runs instead of the optimized model, from the model, the config and the class names.

        Raises:
            UserError: there are no weights, or they are of a backbone alone or of another model.
        """
        cfg = cfg.clone()
        cfg.defrost()
        # The weights of the whole model include these.
        cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
        model = build_model(cfg)
        log_pixel_warnings(cfg)
        loaded = DetrCheckpointer(model, allow_new_head=False).load(cfg.MODEL.WEIGHTS)
        categories = find_categories(cfg, cfg.MODEL.DETR.NUM_CLASSES, loaded.get("class_names"))
        if prepare is None:
            model = optimize_for_inference(model, **inference_options(cfg))
        else:
            model = prepare(model, cfg, categories.names)
        return cls(*with_tiles(model, cfg), cfg.INPUT.FORMAT, categories, file_channels(cfg))

    def prepare(self, image_rgb: NDArray) -> dict:
        """Return the model's input for a (H, W, C) image, as :class:`DetrDatasetMapper` makes it in inference."""
        image = image_rgb
        if self.channels != 3:
            check_bands("An image", image.shape[2], self.channels)
        elif self.image_format != "RGB":
            image = detection_utils.convert_PIL_to_numpy(Image.fromarray(image_rgb), self.image_format)
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        height, width = image_rgb.shape[:2]
        return {"image": to_tensor(augmented.image).contiguous(), "height": height, "width": width}

    def __call__(self, images_rgb: Sequence[NDArray], batch_size: int = 1) -> list[Instances]:
        """Detect objects in (H, W, C) images, RGB if C is 3: as many as queries, on the CPU, boxes in pixels."""
        return [result["instances"] for _, _, result in self.predict(enumerate(images_rgb), batch_size)]

    def predict(
        self, images: Iterable[tuple[Key, NDArray]], batch_size: int = 1
    ) -> Iterator[tuple[Key, NDArray, dict[str, Any]]]:
        """Predict for pairs of a key and an image, in their order, which are read as they are needed.

        Yields:
            key, image, and the model's output for the image, on the CPU: ``instances``, as of ``__call__``,
            ``panoptic_seg`` of a panoptic model, and ``highest_score`` of one with ``MODEL.DETR.TEST.SCORE_THRESHOLD``.
            The outputs of a few batches are in memory: with masks, set that threshold.
        """
        images = iter(images)
        while window := list(islice(images, _WINDOW * batch_size if batch_size > 1 else 1)):
            results = self._predict_window([self.prepare(image) for _, image in window], batch_size)
            for (key, image), result in zip(window, results, strict=True):
                yield key, image, result

    @torch.no_grad()
    def _predict_window(self, inputs: list[dict], batch_size: int) -> list[dict[str, Any]]:
        results = {}
        by_size = sorted(range(len(inputs)), key=lambda i: inputs[i]["image"].shape)
        for start in range(0, len(inputs), batch_size):
            batch = by_size[start : start + batch_size]
            for i, result in zip(batch, self.model([inputs[i] for i in batch]), strict=True):
                results[i] = {"instances": result["instances"].to("cpu")}
                if "panoptic_seg" in result:
                    ids, segments = result["panoptic_seg"]
                    results[i]["panoptic_seg"] = ids.cpu(), segments
                if "highest_score" in result:
                    results[i]["highest_score"] = float(result["highest_score"])
        return [results[i] for i in range(len(inputs))]


def prediction_config(config_file: str, options: Sequence[str] = (), *, trust: bool = False) -> CfgNode:
    """Load the config of a trained model, as :func:`~detr_d2.config.loading.load_config`.

    Unless set in ``options``, ``MODEL.DETR.NUM_CLASSES`` is the checkpoint's, and ``MODEL.DEVICE`` is the CPU if there
    is no GPU. The model has nothing that is for training alone.

    Raises:
        UserError: as ``load_config``; or there are no weights, or they can't be read.
    """
    cfg = load_config(config_file, options, trust=trust)
    cfg.merge_from_list([x for item in TRAINING_ONLY.items() for x in item])
    if not cfg.MODEL.WEIGHTS or cfg.MODEL.WEIGHTS.startswith(_BACKBONES):
        current = "empty" if not cfg.MODEL.WEIGHTS else f"{cfg.MODEL.WEIGHTS}, a backbone that training starts from"
        raise UserError(f"MODEL.WEIGHTS is {current}: to predict, add MODEL.WEIGHTS and the path of a trained model.")
    if "MODEL.DEVICE" not in options[::2] and cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logger.info("PyTorch finds no CUDA GPU: predicting on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    if "MODEL.DETR.NUM_CLASSES" not in options[::2]:
        configured, classes = cfg.MODEL.DETR.NUM_CLASSES, classes_in_checkpoint(cfg.MODEL.WEIGHTS)
        if classes not in (None, configured):
            source = f"{cfg.MODEL.WEIGHTS} (the config says {configured})"
            logger.info(f"MODEL.DETR.NUM_CLASSES is {classes}, as in {source}.")
            cfg.MODEL.DETR.NUM_CLASSES = classes
    return cfg


def classes_in_checkpoint(path: str) -> int | None:
    """Count the foreground classes of the model in a checkpoint; None if it has no class head.

    A head over COCO's category ids, which become contiguous classes, has 80.
    """
    rows = head_rows(to_native(read_checkpoint(path), source=path, contiguous=True).tensors)
    return None if rows is None else rows - 1


def find_categories(cfg: CfgNode, num_classes: int, checkpoint_names: Sequence[str | None] | None) -> Categories:
    """Find the categories of a model for prediction.

    Names come from the checkpoint; if it has none, from the first of ``DATASETS.TEST`` and ``DATASETS.TRAIN`` that has
    as many classes; then from COCO for as many classes as COCO's models have; otherwise classes are called "class 3",
    with a warning. Ids are those of the dataset with these names, or of COCO; otherwise they count from 1.
    """
    # Names and ids, by row.
    known: list[tuple[list[str | None], list[int]]] = []
    for metadata in map(MetadataCatalog.get, (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)):
        # The rows of a panoptic dataset are things, then stuff.
        keys = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
        rows = {i: row for key in keys for i, row in (metadata.get(key) or {}).items()}
        known.append((list(metadata.get("thing_classes") or ()), sorted(rows, key=rows.get)))
    if coco := coco_head_contiguous(num_classes + 1):
        known.append((coco.names, coco.rows[:-1]))
    elif coco := coco_head_by_ids(num_classes + 1):
        known.append((coco.names_by_id, list(range(num_classes))))
    candidates = [*([list(checkpoint_names)] if checkpoint_names else []), *(names for names, _ in known)]
    names = next((x for x in candidates if len(x) == num_classes), None)
    if names is None:
        logger.warning(
            f"Neither the checkpoint nor DATASETS has the names of the {num_classes} classes: they are called "
            f"class 0 to class {num_classes - 1}."
        )
        names = [None] * num_classes
    ids = next((ids for x, ids in known if x == names and len(ids) == num_classes), list(range(1, num_classes + 1)))
    return Categories([name or f"class {i}" for i, name in enumerate(names)], ids)
