"""A small SMCA on rendered shapes: minutes on a CPU, without a dataset."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from detr_d2.data.augmentation import DetrResizeShortestEdge

from .common.coco import dataloader
from .common.smca import model
from .common.train import optimizer, train

model.network.num_classes = 6
model.network.num_queries = 150
model.network.transformer.update(
    hidden_dim=128, nheads=4, enc_layers=1, dec_layers=3, dim_feedforward=256, dropout=0.0, smooth=4.0
)
model.network.transformer.dynamic_scale = "type2"
model.criterion.class_weight = 3.0
_backbone = model.network.backbone.backbone
_backbone.invariant_training = True
_backbone.backbone.stem.norm = "BN"
_backbone.backbone.stages.update(depth=18, norm="BN")
_backbone.backbone.update(out_features=["res3"], freeze_at=0)

dataloader.train.records.names = ["shapes_train"]
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(DetrResizeShortestEdge)(short_edge_length=[112, 128, 144], max_size=208, sample_style="choice", fast=True),
]
dataloader.train.update(batch_size=8, num_workers=1)
dataloader.test.dataset.dataset_name = "shapes_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=128, max_size=208)
dataloader.test.update(batch_size=8, num_workers=1)

optimizer.lr = 5e-4
optimizer.params.backbone_multiplier = 1.0
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0), warmup_factor=0.01, warmup_length=50 / 2100
)
train.update(init_checkpoint="", max_iter=2100, device="cpu", eval_period=700)
