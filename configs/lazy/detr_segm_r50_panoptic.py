"""Panoptic masks on COCO: 25 epochs of the mask head alone, over the frozen box model of things and stuff."""

from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluators

from detr_d2.evaluation import PanopticEvaluator
from detr_d2.modeling.postprocessing import PanopticRules

from .common.masks import add_mask_head
from .detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.network.num_classes = 133
model.freeze_boxes = True
model.panoptic = L(PanopticRules)(is_thing=[True] * 80 + [False] * 53)
add_mask_head(model, level_channels=[1024, 512, 256])

dataloader.train.records.names = ["coco_2017_train_panoptic"]
dataloader.train.mapper.with_masks = True
dataloader.test.dataset.dataset_name = "coco_2017_val_panoptic"
dataloader.evaluator = L(DatasetEvaluators)(
    evaluators=[
        dataloader.evaluator,
        L(PanopticEvaluator)(
            dataset_name="${dataloader.test.dataset.dataset_name}", output_dir="${train.output_dir}/inference"
        ),
    ]
)

lr_multiplier.milestones = [15]
lr_multiplier.num_updates = 25
train.max_iter = 46225
train.init_checkpoint = ""
train.frozen_weights = "https://dl.fbaipublicfiles.com/detr/detr-r50-panoptic-00ce5173.pth"
