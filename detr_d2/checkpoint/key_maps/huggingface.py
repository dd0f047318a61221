"""DETR of the transformers library: what it saves, and what its modules are called in releases 4 and 5.

Table Transformers have the same names; they are pre-norm models.
"""

from torch import Tensor

from detr_d2.checkpoint.key_maps.base import CheckpointFormat, Rules
from detr_d2.checkpoint.key_maps.resnet import huggingface_resnet_rules, torchvision_rules

_P = r"(weight|bias)"
_LAYER = r"model\.(encoder|decoder)\.layers\.(\d+)\."
_OUR_LAYER = r"detr.transformer.\1.layers.\2."
_DECODER_LAYER = r"model\.decoder\.layers\.(\d+)\."
_OUR_DECODER_LAYER = r"detr.transformer.decoder.layers.\1."

# Where both releases have a name for a tensor, the first one is that of the files, which either reads.
_TRANSFORMER: Rules = (
    (rf"{_LAYER}self_attn\.([qkv])_proj\.{_P}", rf"{_OUR_LAYER}self_attn.\3_proj.\4"),
    (rf"{_DECODER_LAYER}encoder_attn\.([qkv])_proj\.{_P}", rf"{_OUR_DECODER_LAYER}multihead_attn.\2_proj.\3"),
    *(
        rule
        for name in ("out_proj", "o_proj")
        for rule in (
            (rf"{_LAYER}self_attn\.{name}\.{_P}", rf"{_OUR_LAYER}self_attn.out_proj.\3"),
            (rf"{_DECODER_LAYER}encoder_attn\.{name}\.{_P}", rf"{_OUR_DECODER_LAYER}multihead_attn.out_proj.\2"),
        )
    ),
    *((rf"{_LAYER}{module}fc([12])\.{_P}", rf"{_OUR_LAYER}linear\3.\4") for module in ("", r"mlp\.")),
    (rf"{_LAYER}self_attn_layer_norm\.{_P}", rf"{_OUR_LAYER}norm1.\3"),
    (rf"{_DECODER_LAYER}encoder_attn_layer_norm\.{_P}", rf"{_OUR_DECODER_LAYER}norm2.\2"),
    (rf"{_DECODER_LAYER}final_layer_norm\.{_P}", rf"{_OUR_DECODER_LAYER}norm3.\2"),
    (
        rf"model\.encoder\.layers\.(\d+)\.final_layer_norm\.{_P}",
        r"detr.transformer.encoder.layers.\1.norm2.\2",
    ),
    (rf"model\.(encoder|decoder)\.layernorm\.{_P}", r"detr.transformer.\1.norm.\2"),
)

_REST: Rules = (
    (r"model\.query_position_embeddings\.weight", "detr.query_embed.weight"),
    (rf"model\.input_projection\.{_P}", r"detr.input_proj.\1"),
    *(
        rule
        for module in ("", r"backbone\.")
        for rule in (
            (rf"model\.{module}position_embedding\.row_embeddings\.weight", "detr.backbone.1.row_embed.weight"),
            (rf"model\.{module}position_embedding\.column_embeddings\.weight", "detr.backbone.1.col_embed.weight"),
        )
    ),
    (rf"class_labels_classifier\.{_P}", r"detr.class_embed.\1"),
    (rf"bbox_predictor\.layers\.(\d+)\.{_P}", r"detr.bbox_embed.layers.\1.\2"),
)

# The encoder of images is timm's, whose ResNets have torchvision's names, or the library's own.
_BACKBONES: Rules = tuple(
    rule
    for prefix in (r"model\.backbone\.conv_encoder\.model\.", r"model\.backbone\.model\.")
    for rule in (*torchvision_rules(prefix), *huggingface_resnet_rules(prefix))
)
_BOX: Rules = (*_TRANSFORMER, *_REST, *_BACKBONES)

BOX = CheckpointFormat(
    name="transformers DETR",
    signature=(r"model\.decoder\.layers\.\d+\.encoder_attn\.q_proj\.weight", r"class_labels_classifier\.weight"),
    rules=_BOX,
    has_coco_ids=True,
    splits_in_proj=True,
)

SEGMENTATION = CheckpointFormat(
    name="transformers DETR segmentation",
    signature=tuple(rf"detr\.{x}" for x in BOX.signature),
    rules=(*((rf"detr\.{x}", y) for x, y in _BOX), (r"(bbox_attention|mask_head)\..+", None)),
    has_coco_ids=True,
    splits_in_proj=True,
)


def release_4_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, under their other names, of what release 4 and Table Transformers look for elsewhere: learned positions.

    Either release loads a file with both, and reports the other one's as unused.
    """
    old, new = "model.backbone.position_embedding.", "model.position_embedding."
    return {name.replace(new, old): x.clone() for name, x in tensors.items() if name.startswith(new)}
