"""Models and inputs that are compared: the original DETR, transformers', random images, the same random weights.

The original is the package python-detr, built after one of our configs.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import getitem

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detr.models import segmentation
from detr.models.backbone import BackboneBase, FrozenBatchNorm2d, Joiner
from detr.models.detr import DETR, SetCriterion
from detr.models.matcher import HungarianMatcher
from detr.models.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from detr.models.transformer import Transformer
from detr.util.box_ops import box_xyxy_to_cxcywh
from detr.util.misc import NestedTensor, nested_tensor_from_tensor_list
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks import ours
from detr_d2 import UserError

PRECISIONS = {"": "float32", "-bf16": "bfloat16", "-fp16": "float16"}
"""Data types by the ending of an implementation's name."""

REFERENCES = {
    "python-detr": ("python-detr", False),
    "python-detr-kept": ("python-detr", True),
    "transformers": ("transformers", False),
    "transformers-kept": ("transformers", True),
}
"""Libraries by the start of an implementation's name, with True if its process keeps freed memory, as ours does."""

_SEED = 0
# Equally improbable random classes would hide differences between implementations.
_SHARPNESS = 10
# Confident queries of a panoptic model.
_SEGMENTS = 15

_POSITIONS = {"sine": lambda x: PositionEmbeddingSine(x, normalize=True), "learned": PositionEmbeddingLearned}
# The only values that the original supports.
_ONLY = {
    "MODEL.DETR.TRANSFORMER": "DetrTransformer",
    "MODEL.DETR.CLASS_LOSS": "softmax",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def build_original(cfg: CfgNode) -> nn.Module:
    """Build the original network with useful random weights, in evaluation mode.

    Raises:
        UserError: the original has no such model.
    """
    values = {key: reduce(getitem, key.split("."), cfg) for key in _ONLY}
    if others := [f"{key} {value}" for key, value in values.items() if value != _ONLY[key]]:
        raise UserError(f"The original DETR has no {', '.join(others)}: there is nothing to compare with.")
    torch.manual_seed(_SEED)
    model = original_network(cfg, cfg.MODEL.DETR.NUM_CLASSES)
    model = with_original_mask_head(cfg, model) if cfg.MODEL.MASK_ON else model
    with torch.no_grad():
        # Without training, features explode from block to block, and attention is the same everywhere.
        for block in (x for x in model.modules() if isinstance(x, BasicBlock | Bottleneck)):
            getattr(block, "bn3", block.bn2).weight *= 0.1
        boxes = model.detr if cfg.MODEL.MASK_ON else model
        boxes.class_embed.weight *= _SHARPNESS
        if cfg.MODEL.MASK_ON:
            model.bbox_attention.q_linear.weight *= 3
            model.mask_head.lay1.weight[:, cfg.MODEL.DETR.HIDDEN_DIM :] *= 100
    return model.to(cfg.MODEL.DEVICE).eval()


def original_network(cfg: CfgNode, num_classes: int) -> DETR:
    """Build the original network for boxes, whose backbone also returns finer levels if ``MODEL.MASK_ON``."""
    detr = cfg.MODEL.DETR
    dilation = {} if cfg.MODEL.RESNETS.RES5_DILATION == 1 else {"replace_stride_with_dilation": [False, False, True]}
    resnet = getattr(torchvision.models, f"resnet{cfg.MODEL.RESNETS.DEPTH}")
    body = resnet(weights=None, norm_layer=FrozenBatchNorm2d, **dilation)
    backbone = BackboneBase(body, True, body.fc.in_features, return_interm_layers=cfg.MODEL.MASK_ON)
    joiner = Joiner(backbone, _POSITIONS[detr.POSITION_EMBEDDING](detr.HIDDEN_DIM // 2))
    joiner.num_channels = backbone.num_channels
    transformer = Transformer(
        d_model=detr.HIDDEN_DIM,
        nhead=detr.NHEADS,
        num_encoder_layers=detr.ENC_LAYERS,
        num_decoder_layers=detr.DEC_LAYERS,
        dim_feedforward=detr.DIM_FEEDFORWARD,
        dropout=detr.DROPOUT,
        normalize_before=detr.PRE_NORM,
        return_intermediate_dec=True,
    )
    return DETR(joiner, transformer, num_classes, detr.NUM_OBJECT_QUERIES, aux_loss=detr.DEEP_SUPERVISION)


def with_original_mask_head(cfg: CfgNode, network: DETR) -> segmentation.DETRsegm:
    """Add the original's mask head, for the channels of any ResNet, to its network."""
    model = segmentation.DETRsegm(network)
    if cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != 256:
        detr = cfg.MODEL.DETR
        channels = [cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * x for x in (4, 2, 1)]
        model.mask_head = segmentation.MaskHeadSmallConv(detr.HIDDEN_DIM + detr.NHEADS, channels, detr.HIDDEN_DIM)
    return model


def build_original_criterion(cfg: CfgNode) -> SetCriterion:
    """Build the original criterion, whose ``weight_dict`` holds the weights of the losses to sum."""
    detr = cfg.MODEL.DETR
    matcher = HungarianMatcher(cost_class=detr.CLASS_WEIGHT, cost_bbox=detr.L1_WEIGHT, cost_giou=detr.GIOU_WEIGHT)
    weights = {"loss_ce": detr.CLASS_WEIGHT, "loss_bbox": detr.L1_WEIGHT, "loss_giou": detr.GIOU_WEIGHT}
    suffixes = ["", *(f"_{i}" for i in range(detr.DEC_LAYERS - 1))] if detr.DEEP_SUPERVISION else [""]
    weight_dict = {name + suffix: weight for suffix in suffixes for name, weight in weights.items()}
    losses = ["labels", "boxes", "cardinality"]
    if cfg.MODEL.MASK_ON:
        weight_dict |= {"loss_mask": detr.MASK.FOCAL_WEIGHT, "loss_dice": detr.MASK.DICE_WEIGHT}
        losses.append("masks")
    return SetCriterion(detr.NUM_CLASSES, matcher, weight_dict, detr.NO_OBJECT_WEIGHT, losses).to(cfg.MODEL.DEVICE)


def original_samples(batch: list[dict], cfg: CfgNode) -> NestedTensor:
    """Normalize and pad images as the original's data loader does."""
    device = torch.device(cfg.MODEL.DEVICE)
    mean, std = (torch.tensor(x).view(3, 1, 1).to(device) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return nested_tensor_from_tensor_list([(x["image"].to(device) - mean) / std for x in batch])


def original_targets(batch: list[dict], cfg: CfgNode) -> list[dict[str, Tensor]]:
    """Convert objects to the targets of the original, with boxes in relative center format."""
    targets = []
    for objects in (x["instances"] for x in batch):
        height, width = objects.image_size
        boxes = box_xyxy_to_cxcywh(objects.gt_boxes.tensor / torch.tensor([width, height, width, height]))
        target = {"labels": objects.gt_classes, "boxes": boxes}
        if objects.has("gt_masks"):
            target["masks"] = objects.gt_masks.tensor
        targets.append({name: x.to(cfg.MODEL.DEVICE) for name, x in target.items()})
    return targets


def to_float32(outputs: dict) -> dict:
    """Convert what autocast left in a lower precision, which neither losses nor results are computed in."""
    return {
        name: [to_float32(layer) for layer in x] if isinstance(x, list) else x.float() for name, x in outputs.items()
    }


def build_transformers(cfg: CfgNode) -> nn.Module:
    """Build transformers' DETR with the weights of :func:`build_original`, in evaluation mode.

    Raises:
        UserError: the library, or timm, is not installed, or has no such model.
    """
    try:
        import timm  # noqa: F401
        import transformers
    except ImportError as e:
        raise UserError("The comparison with transformers' DETR requires: pip install transformers timm") from e
    if cfg.MODEL.MASK_ON:
        raise UserError("transformers' DETR is compared on boxes only: leave it out of --implementations.")
    dropout = cfg.MODEL.DETR.DROPOUT
    dropouts = {"dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout}
    with ours.exported_to_transformers(cfg, build_original(cfg).state_dict()) as folder:
        model = transformers.DetrForObjectDetection.from_pretrained(
            folder, **dropouts, auxiliary_loss=cfg.MODEL.DETR.DEEP_SUPERVISION, local_files_only=True
        )
    return model.eval().to(cfg.MODEL.DEVICE)


def autocast(cfg: CfgNode, precision: str) -> AbstractContextManager:
    """Return a context that casts to a dtype, named as an attribute of torch; with "float32" nothing is cast."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, getattr(torch, precision))


def random_batch(
    sizes: list[tuple[int, int]], num_classes: int, objects: int, *, masks: bool = False, seed: int = 0
) -> list[dict]:
    """Return random images with objects, as a mapper does; the same for the same arguments.

    Args:
        sizes: height and width of each image in pixels.
        num_classes: number of classes.
        objects: number of objects per image, rectangles anywhere, of any class.
        masks: True to give the objects masks.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for height, width in sizes:
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        corners = torch.rand(objects, 2, 2, generator=generator).sort(1).values.flatten(1)
        boxes = corners * torch.tensor([width, height, width, height])
        instances = Instances((height, width), gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        if masks:
            instances.gt_masks = BitMasks(_rectangles(boxes, height, width))
        # Results have the size of the image before it was resized: 480 x 640 for 800 x 1066.
        size = {"height": round(0.6 * height), "width": round(0.6 * width)}
        batch.append({"image": image, "instances": instances, "file_name": "random", **size})
    return batch


def _rectangles(boxes: Tensor, height: int, width: int) -> Tensor:
    x, y = torch.arange(width), torch.arange(height)[:, None]
    x0, y0, x1, y1 = boxes[..., None, None].unbind(1)
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def make_segments(cfg: CfgNode, boxes: nn.Module, masks: nn.Module) -> None:
    """Make a random model find a few segments, things and stuff in turn, the same in every implementation.

    Args:
        cfg: config of the model.
        boxes: module with ``class_embed``.
        masks: module with ``bbox_attention``.
    """
    generator = torch.Generator().manual_seed(_SEED)
    queries, classes = cfg.MODEL.DETR.NUM_OBJECT_QUERIES, cfg.MODEL.DETR.NUM_CLASSES
    logits = torch.zeros(queries, classes + 1)
    logits[:, -1] = 10
    chosen = torch.arange(min(_SEGMENTS, queries))
    logits[chosen, torch.where(chosen % 2 == 0, classes - 1 - chosen, chosen) % classes] = 20
    boxes.class_embed = _Constant(logits).to(cfg.MODEL.DEVICE)
    # Untrained queries are nearly alike, so that rounding would decide which pixels they get: move them apart.
    shift = torch.randn(queries, cfg.MODEL.DETR.HIDDEN_DIM, generator=generator)
    masks.bbox_attention.q_linear = nn.Sequential(_Shift(shift), masks.bbox_attention.q_linear).to(cfg.MODEL.DEVICE)


class _Constant(nn.Module):
    def __init__(self, logits: Tensor):
        super().__init__()
        # Named as in a linear layer, whose precision models look up.
        self.register_buffer("weight", logits)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight.expand(*hidden.shape[:-1], -1)


class _Shift(nn.Module):
    def __init__(self, shift: Tensor):
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.shift
