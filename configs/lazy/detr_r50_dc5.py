"""As detr_r50.py, with the last stage dilated instead of strided: twice the resolution, four times the features."""

from detectron2.config import LazyCall as L

from detr_d2.modeling.resnet import dilated_stages

from .detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.network.backbone.backbone.backbone.stages = L(dilated_stages)(depth=50, norm="FrozenBN")
