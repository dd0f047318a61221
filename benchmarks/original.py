"""The original DETR (package python-detr), built after a config of ours."""

import torch
import torchvision
from detectron2.config import CfgNode
from detr.models import segmentation
from detr.models.backbone import BackboneBase, FrozenBatchNorm2d, Joiner
from detr.models.detr import DETR, SetCriterion
from detr.models.matcher import HungarianMatcher
from detr.models.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from detr.models.transformer import Transformer
from detr.util.misc import NestedTensor, nested_tensor_from_tensor_list
from torch import Tensor, nn

from detr_d2.utils.box_ops import xyxy_to_cxcywh
from detr_d2.utils.errors import UserError

_POSITIONS = {"sine": lambda x: PositionEmbeddingSine(x, normalize=True), "learned": PositionEmbeddingLearned}
# What the original knows one kind of only.
_ONLY = {
    "MODEL.DETR.TRANSFORMER": "DetrTransformer",
    "MODEL.DETR.CLASS_LOSS": "softmax",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def build_network(cfg: CfgNode) -> nn.Module:
    """With random weights, in evaluation mode.

    Raises:
        UserError: the original has no such model.
    """
    values = dict(zip(_ONLY, (_value(cfg, key) for key in _ONLY), strict=True))
    if others := [f"{key} {values[key]}" for key in _ONLY if values[key] != _ONLY[key]]:
        raise UserError(f"The original DETR has no {', '.join(others)}: there is nothing to compare with.")
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
    model = DETR(joiner, transformer, detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, aux_loss=detr.DEEP_SUPERVISION)
    if not cfg.MODEL.MASK_ON:
        return model.eval()
    model = segmentation.DETRsegm(model)
    if cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != 256:
        channels = [cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * x for x in (4, 2, 1)]
        model.mask_head = segmentation.MaskHeadSmallConv(detr.HIDDEN_DIM + detr.NHEADS, channels, detr.HIDDEN_DIM)
    return model.eval()


def _value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """Its ``weight_dict`` holds the weights of the losses to sum."""
    detr = cfg.MODEL.DETR
    matcher = HungarianMatcher(cost_class=detr.CLASS_WEIGHT, cost_bbox=detr.L1_WEIGHT, cost_giou=detr.GIOU_WEIGHT)
    weights = {"loss_ce": detr.CLASS_WEIGHT, "loss_bbox": detr.L1_WEIGHT, "loss_giou": detr.GIOU_WEIGHT}
    suffixes = ["", *(f"_{i}" for i in range(detr.DEC_LAYERS - 1))] if detr.DEEP_SUPERVISION else [""]
    weight_dict = {name + suffix: weight for suffix in suffixes for name, weight in weights.items()}
    losses = ["labels", "boxes", "cardinality"]
    if cfg.MODEL.MASK_ON:
        weight_dict |= {"loss_mask": detr.MASK.FOCAL_WEIGHT, "loss_dice": detr.MASK.DICE_WEIGHT}
        losses.append("masks")
    return SetCriterion(detr.NUM_CLASSES, matcher, weight_dict, detr.NO_OBJECT_WEIGHT, losses)


def samples(batch: list[dict], cfg: CfgNode) -> NestedTensor:
    """Normalised and padded, as its data loader hands them over."""
    device = torch.device(cfg.MODEL.DEVICE)
    mean, std = (torch.tensor(x).view(3, 1, 1).to(device) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return nested_tensor_from_tensor_list([(x["image"].to(device) - mean) / std for x in batch])


def targets(batch: list[dict], device: torch.device | str) -> list[dict[str, Tensor]]:
    found = []
    for objects in (x["instances"] for x in batch):
        height, width = objects.image_size
        boxes = xyxy_to_cxcywh(objects.gt_boxes.tensor / torch.tensor([width, height, width, height]))
        target = {"labels": objects.gt_classes.to(device), "boxes": boxes.to(device)}
        if objects.has("gt_masks"):
            target["masks"] = objects.gt_masks.tensor.to(device)
        found.append(target)
    return found


def to_float32(outputs: dict) -> dict:
    """What autocast left in a lower precision, which neither losses nor results are computed in."""
    return {
        name: [to_float32(layer) for layer in x] if isinstance(x, list) else x.float() for name, x in outputs.items()
    }
