"""DETR on COCO: 300 epochs in batches of 64 images, the learning rate drops after 200."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .common.coco import dataloader
from .common.detr import model
from .common.train import optimizer, train

# In epochs; train.max_iter says how many iterations they take.
lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[200], num_updates=300)
