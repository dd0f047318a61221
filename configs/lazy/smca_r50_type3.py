"""SMCA on COCO: 50 epochs in batches of 32 images, the learning rate drops after 40."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .common.coco import dataloader
from .common.smca import model
from .common.train import optimizer, train

dataloader.train.batch_size = 32
lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[40], num_updates=50)
train.max_iter = 184800
train.eval_period = 7392
