"""DETR with a ResNet-50 on COCO's 80 classes (arXiv 2005.12872)."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from detr_d2.criterion import SetCriterion
from detr_d2.criterion.matching import HungarianMatcher, MatchingCost
from detr_d2.modeling import BackboneWithPosition, Detr, DetrNetwork, DetrTransformer, MaskedBackbone
from detr_d2.modeling.position_encoding import PositionEmbeddingSine

model = L(Detr)(
    network=L(DetrNetwork)(
        backbone=L(BackboneWithPosition)(
            backbone=L(MaskedBackbone)(
                backbone=L(ResNet)(
                    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
                    stages=L(ResNet.make_default_stages)(depth=50, norm="FrozenBN"),
                    out_features=["res5"],
                    freeze_at=2,
                ),
                invariant=True,
                invariant_training=False,
            ),
            position_embedding=L(PositionEmbeddingSine)(hidden_dim="${...transformer.hidden_dim}"),
        ),
        transformer=L(DetrTransformer)(
            hidden_dim=256,
            nheads=8,
            enc_layers=6,
            dec_layers=6,
            dim_feedforward=2048,
            dropout=0.1,
            pre_norm=False,
        ),
        num_classes=80,
        num_queries=100,
    ),
    criterion=L(SetCriterion)(
        num_classes="${..network.num_classes}",
        cost=L(MatchingCost)(class_weight=1.0, l1_weight=5.0, giou_weight=2.0),
        matcher=L(HungarianMatcher)(),
        class_weight=1.0,
        l1_weight=5.0,
        giou_weight=2.0,
        no_object_weight=0.1,
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    deep_supervision=True,
)
