"""COCO's images and boxes, with DETR's augmentation (arXiv 2005.12872, appendix A.4)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader

from detr_d2.data import DetrDatasetMapper, load_test_records, load_training_records
from detr_d2.data.augmentation import DetrResizeShortestEdge
from detr_d2.data.training_loader import TrainingLoader
from detr_d2.evaluation import DetrCOCOEvaluator

dataloader = dict(
    train=L(TrainingLoader)(
        records=L(load_training_records)(names=["coco_2017_train"], filter_empty=False),
        mapper=L(DetrDatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.RandomFlip)(horizontal=True),
                L(T.RandomApply)(
                    tfm_or_aug=L(T.AugmentationList)(
                        augs=[
                            L(DetrResizeShortestEdge)(
                                short_edge_length=[400, 500, 600], sample_style="choice", fast=True
                            ),
                            L(T.RandomCrop)(crop_type="absolute_range", crop_size=[384, 600]),
                        ]
                    ),
                    prob=0.5,
                ),
                L(DetrResizeShortestEdge)(
                    short_edge_length=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
                    max_size=1333,
                    sample_style="choice",
                    fast=True,
                ),
            ],
            image_format="RGB",
            with_masks=False,
        ),
        batch_size=64,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(load_test_records)(dataset_name="coco_2017_val", batch_size="${..batch_size}"),
        mapper=L(DetrDatasetMapper)(
            is_train=False,
            augmentations=[L(DetrResizeShortestEdge)(short_edge_length=800, max_size=1333, sample_style="choice")],
            image_format="${...train.mapper.image_format}",
        ),
        batch_size=1,
        num_workers=4,
    ),
    evaluator=L(DetrCOCOEvaluator)(
        dataset_name="${dataloader.test.dataset.dataset_name}", output_dir="${train.output_dir}/inference"
    ),
)
