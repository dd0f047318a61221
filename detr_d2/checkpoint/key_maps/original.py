"""The original DETR (github.com/facebookresearch/detr), box and segmentation models, and SMCA, which is built on it."""

from detr_d2.checkpoint.key_maps.base import CheckpointFormat, Rules
from detr_d2.checkpoint.key_maps.resnet import torchvision_rules

_PARTS = r"(?:transformer|class_embed|bbox_embed|query_embed|input_proj|backbone\.1)"


def _box_rules(prefix: str) -> Rules:
    return ((rf"{prefix}({_PARTS}\..+)", r"detr.\1"), *torchvision_rules(rf"{prefix}backbone\.0\.body\."))


BOX = CheckpointFormat(
    name="original DETR",
    signature=(r"transformer\.decoder\..+", r"backbone\.0\.body\..+"),
    rules=_box_rules(""),
    has_coco_ids=True,
)

SMCA = CheckpointFormat(
    name="SMCA",
    signature=(*BOX.signature, r"transformer\.decoder\.layers\.\d+\.point2\..+"),
    rules=BOX.rules,
    has_coco_ids=True,
    implies={"MODEL.DETR.CLASS_LOSS": "focal"},
)

# The box model sits inside the segmentation model, so its names have one prefix more.
SEGMENTATION = CheckpointFormat(
    name="original DETR segmentation",
    signature=(r"detr\.transformer\.decoder\..+", r"detr\.backbone\.0\.body\..+"),
    rules=(*_box_rules(r"detr\."), (r"((?:bbox_attention|mask_head)\..+)", r"detr.\1")),
    has_coco_ids=True,
)
