"""DETR as a Detectron2 meta-architecture."""

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from detr_d2.checkpoint import native_state_dict
from detr_d2.config import check_model_config
from detr_d2.criterion import MASK_LOSSES, MaskPredictor, MatchedPairs, SetCriterion
from detr_d2.data.panoptic import things_of_model
from detr_d2.modeling import (
    BackboneWithPosition,
    DetrNetwork,
    box_modules,
    build_mask_modules,
    build_masked_backbone,
    build_position_embedding,
    build_transformer,
)
from detr_d2.modeling.postprocessing import (
    PanopticRules,
    QueryMasks,
    box_instances,
    panoptic_segmentation,
    resized_masks,
)
from detr_d2.structures import MaskFeatures, Predictions, Targets
from detr_d2.structures.target_checks import check_instances
from detr_d2.utils.errors import UserError

# What a sigmoid class head says of every class at the start: most are not there.
_CLASS_PRIOR = 0.01

# Metrics leave the device this seldom: as often as Detectron2 writes a line.
_METRICS_PERIOD = 20


@META_ARCH_REGISTRY.register()
class Detr(nn.Module):
    """End-to-end object detection with transformers (arXiv 2005.12872)."""

    @configurable
    def __init__(
        self,
        *,
        network: DetrNetwork,
        criterion: SetCriterion,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        deep_supervision: bool = True,
        class_loss: str = "softmax",
        score_threshold: float = 0.0,
        mask_threshold: float = 0.5,
        freeze_boxes: bool = False,
        panoptic: PanopticRules | None = None,
    ):
        """
        Args:
            network: images to predictions.
            criterion: predictions and targets to losses.
            pixel_mean, pixel_std: a value a channel, in the order of the images' channels, on a scale of 255.
            deep_supervision: losses after every decoder layer, not the last alone.
            class_loss: "softmax" or "focal", which decides how detections are ranked.
            score_threshold: detections with a lower score are not returned.
            mask_threshold: a pixel belongs to a mask if its probability is higher.
            freeze_boxes: train the mask head alone. All else has no gradients, and no dropout in training either.
            panoptic: which queries become segments; None: no panoptic results.
        """
        super().__init__()
        self.detr = network
        self.criterion = criterion
        self.deep_supervision = deep_supervision
        self.class_loss = class_loss
        self.score_threshold = score_threshold
        self.mask_threshold = mask_threshold
        self.freeze_boxes = freeze_boxes
        if freeze_boxes:
            for module in box_modules(network):
                module.requires_grad_(False)
        self.panoptic = panoptic
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_model_config(cfg)
        detr = cfg.MODEL.DETR
        backbone = build_masked_backbone(cfg)
        attention_maps, mask_head = build_mask_modules(cfg, backbone.level_channels)
        network = DetrNetwork(
            backbone=BackboneWithPosition(backbone, build_position_embedding(cfg)),
            transformer=build_transformer(cfg),
            num_classes=detr.NUM_CLASSES,
            num_queries=detr.NUM_OBJECT_QUERIES,
            class_prior=_CLASS_PRIOR if detr.CLASS_LOSS == "focal" else None,
            attention_maps=attention_maps,
            mask_head=mask_head,
            mask_chunk=detr.MASK.CHUNK,
        )
        return {
            "network": network,
            "criterion": SetCriterion(cfg),
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "deep_supervision": detr.DEEP_SUPERVISION,
            "class_loss": detr.CLASS_LOSS,
            "score_threshold": detr.TEST.SCORE_THRESHOLD,
            "mask_threshold": detr.MASK.THRESHOLD,
            "freeze_boxes": bool(detr.FROZEN_WEIGHTS),
            "panoptic": PanopticRules.from_config(cfg, things_of_model(cfg)) if detr.PANOPTIC.ENABLED else None,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def has_masks(self) -> bool:
        return self.detr.mask_head is not None

    def train(self, mode: bool = True) -> "Detr":
        super().train(mode)
        if self.freeze_boxes:
            for module in box_modules(self.detr):
                module.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict an image, as Detectron2's mappers make them: ``image``, (C, H, W); in training
                ``instances`` with ``gt_boxes``, ``gt_classes`` and, for a mask head, ``gt_masks``; in inference
                ``height`` and ``width`` of the wanted result in pixels, by default those of ``image``.

        Returns:
            In training the weighted losses by name; their sum is the loss. In inference a dict an image whose
            ``instances`` hold ``pred_boxes``, ``scores`` and ``pred_classes`` of every object query, or those with a
            score over a threshold; of a model with a mask head also ``pred_masks``, (N, H, W) bool. With panoptic
            rules also ``panoptic_seg``, see :func:`~detr_d2.modeling.postprocessing.panoptic_segmentation`.
        """
        images = self.preprocess_image(batched_inputs)
        if self.training:
            targets = self._targets(batched_inputs)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_boxes):
                predictions = self.detr(images, all_layers=self.deep_supervision and not self.freeze_boxes)
            masks = self._mask_predictor(predictions, images)
            return self._losses(predictions, targets, masks, batched_inputs)
        predictions = self.detr(images, all_layers=False)
        sizes = [
            (int(x.get("height", size[0])), int(x.get("width", size[1])))
            for x, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        instances = box_instances(predictions, sizes, self.class_loss, self.score_threshold)
        results = [{"instances": x} for x in instances]
        if predictions.mask_features is not None:
            for index, result in enumerate(results):
                masks = self._query_masks(predictions, index)
                # The frame that the mask logits fill, and the image in it.
                frame_sizes = {
                    "padded_size": predictions.mask_features.frames[index],
                    "image_size": images.image_sizes[index],
                }
                instances[index].pred_masks = self._instance_masks(instances[index], masks, **frame_sizes)
                if self.panoptic is not None:
                    result["panoptic_seg"] = panoptic_segmentation(
                        predictions.logits[-1, index],
                        masks,
                        **frame_sizes,
                        output_size=sizes[index],
                        rules=self.panoptic,
                    )
        return results

    def _query_masks(self, predictions: Predictions, index: int) -> QueryMasks:
        features = predictions.mask_features.of_image(index)
        make = partial(self._mask_logits_of_image, features)
        return QueryMasks(make, features.hidden.shape[1], self.device)

    def _mask_logits_of_image(self, features: MaskFeatures, queries: Tensor) -> Tensor:
        return self.detr.mask_logits(features, torch.zeros_like(queries), queries)

    def _instance_masks(self, instances: Instances, masks: QueryMasks, **frame_sizes: tuple[int, int]) -> Tensor:
        if not len(instances):
            return torch.zeros((0, *instances.image_size), dtype=torch.bool, device=self.device)
        return resized_masks(
            masks(instances.queries),
            **frame_sizes,
            output_size=instances.image_size,
            threshold=self.mask_threshold,
        )

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them with zeros, right and below, to the largest of the batch."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        backbone = self.detr.backbone[0].backbone
        return ImageList.from_tensors(
            images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints
        )

    def _targets(self, batched_inputs: list[dict]) -> Targets:
        for i, x in enumerate(batched_inputs):
            if "instances" not in x:
                raise UserError(
                    f"Training needs 'instances' in every input; {_name(x, i)} has none. Use DetrDatasetMapper "
                    "with is_train=True, or call model.eval() to predict."
                )
            check_instances(
                x["instances"],
                _name(x, i),
                num_classes=self.criterion.num_classes,
                num_queries=self.detr.query_embed.num_embeddings,
                masks=self.has_masks,
            )
        return Targets.from_instances([x["instances"] for x in batched_inputs], self.device, masks=self.has_masks)

    def _mask_predictor(self, predictions: Predictions, images: ImageList) -> MaskPredictor | None:
        if not self.has_masks:
            return None
        features = predictions.mask_features
        together = set(features.frames) == {tuple(images.tensor.shape[-2:])}
        make = partial(self._masks_together if together else self._masks_by_image, features)
        return MaskPredictor(make, predictions.logits.shape[2], features.frames)

    def _masks_together(self, features: MaskFeatures, pairs: MatchedPairs) -> Sequence[Tensor]:
        return self.detr.mask_logits(features, pairs.images, pairs.queries).split(pairs.counts)

    def _masks_by_image(self, features: MaskFeatures, pairs: MatchedPairs) -> Sequence[Tensor]:
        queries = enumerate(pairs.queries.split(pairs.counts))
        nothing = features.hidden.new_zeros(0, 1, 1)
        return [self._mask_logits_of_image(features.of_image(i), x) if len(x) else nothing for i, x in queries]

    def _losses(
        self, predictions: Predictions, targets: Targets, masks: MaskPredictor | None, batched_inputs: list[dict]
    ) -> dict[str, Tensor]:
        try:
            losses, metrics = self.criterion(predictions, targets, masks)
        except FloatingPointError as e:
            names = ", ".join(_name(x, i) for i, x in enumerate(batched_inputs))
            raise FloatingPointError(f"{e} Images of the batch: {names}.") from e
        _write_metrics(metrics)
        # The losses of boxes that are frozen are constants: they are watched, not minimised.
        return {name: losses[name] for name in MASK_LOSSES} if self.freeze_boxes else losses

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Whoever loads this model, Detectron2's DefaultPredictor included, may hold a foreign checkpoint.
        if not prefix:
            native = native_state_dict(state_dict, self.criterion.num_classes, self.detr.mask_head is not None)
            if native is not state_dict:
                state_dict.clear()
                state_dict.update(native)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _name(dataset_dict: dict, index: int) -> str:
    return str(dataset_dict.get("file_name") or f"input {index} of the batch")


def _write_metrics(metrics: dict[str, Tensor]) -> None:
    if not has_event_storage():
        return
    storage = get_event_storage()
    if (storage.iter + 1) % _METRICS_PERIOD == 0:
        values = torch.stack([x.float() for x in metrics.values()]).tolist()
        storage.put_scalars(**dict(zip(metrics, values, strict=True)))
