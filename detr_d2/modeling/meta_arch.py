"""DETR as a Detectron2 meta-architecture."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from detr_d2.checkpoint import native_state_dict, split_training_only
from detr_d2.config import check_model_config
from detr_d2.criterion import MASK_LOSSES, MatchedMasks, Normalizer, SetCriterion, get_class_loss, matched_pairs
from detr_d2.data.panoptic import things_of_model
from detr_d2.modeling.backbone import BackboneWithPosition, build_masked_backbone
from detr_d2.modeling.denoising import NoisedQueries
from detr_d2.modeling.dense_supervision import DenseSupervision, build_dense_supervision
from detr_d2.modeling.mask_head import build_mask_modules
from detr_d2.modeling.network import DetrNetwork
from detr_d2.modeling.position_encoding import build_position_embedding
from detr_d2.modeling.postprocessing import PanopticRules, box_instances, panoptic_segmentation, resized_masks
from detr_d2.modeling.training_queries import TrainingQueries, build_training_queries
from detr_d2.modeling.transformer import build_transformer
from detr_d2.structures import Output, PaddedBatch, Size, Targets, check_instances
from detr_d2.utils.errors import UserError

# Steps between copies of metrics to the host: as many as between Detectron2's log lines.
_METRICS_PERIOD = 20


@META_ARCH_REGISTRY.register()
class Detr(nn.Module):
    """End-to-end object detection with transformers (arXiv 2005.12872).

    Args:
        network: network that maps images to predictions.
        criterion: criterion that maps predictions and targets to losses.
        pixel_mean: one value per channel, in the order and the units of the images' channels.
        pixel_std: standard deviations, in the same form.
        deep_supervision: True to compute losses after every decoder layer, not only after the last.
        class_loss: name of the class loss of the training, which decides how detections are ranked.
        score_threshold: detections with a lower score are not returned.
        class_thresholds: one more minimum score for each class; (): none.
        nms_threshold: of two detections of one class with a higher IoU, the one with the lower score is not returned.
            1: no NMS.
        mask_threshold: a pixel belongs to a mask if its probability is higher.
        freeze_boxes: True to train the mask head alone. Nothing else has gradients, or dropout in training.
        panoptic: rules by which queries become segments. None: no panoptic results.
        training_queries: module that adds queries in training. None: no further queries.
        dense_supervision: module that adds losses of the encoder's output in training. None: no further losses.
    """

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
        class_thresholds: Sequence[float] = (),
        nms_threshold: float = 1.0,
        mask_threshold: float = 0.5,
        freeze_boxes: bool = False,
        panoptic: PanopticRules | None = None,
        training_queries: TrainingQueries | None = None,
        dense_supervision: DenseSupervision | None = None,
    ):
        super().__init__()
        self.detr = network
        self.criterion = criterion
        self.deep_supervision = deep_supervision
        self.class_loss = class_loss
        self.score_threshold = score_threshold
        self.class_thresholds = tuple(class_thresholds)
        self.nms_threshold = nms_threshold
        self.mask_threshold = mask_threshold
        self.freeze_boxes = freeze_boxes
        if freeze_boxes:
            for module in network.box_modules():
                module.requires_grad_(False)
        self.panoptic = panoptic
        self.training_queries = training_queries
        self.dense_supervision = dense_supervision
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
            class_prior=get_class_loss(detr.CLASS_LOSS).prior,
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
            "class_thresholds": detr.TEST.CLASS_THRESHOLDS,
            "nms_threshold": detr.TEST.NMS_THRESHOLD,
            "mask_threshold": detr.MASK.THRESHOLD,
            "freeze_boxes": bool(detr.FROZEN_WEIGHTS),
            "panoptic": PanopticRules.from_config(cfg, things_of_model(cfg)) if detr.PANOPTIC.ENABLED else None,
            "training_queries": build_training_queries(cfg),
            "dense_supervision": build_dense_supervision(cfg),
        }

    @property
    def device(self) -> torch.device:
        """Device of the model and its results."""
        return self.pixel_mean.device

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return self.detr.mask_head is not None

    def train(self, mode: bool = True) -> "Detr":
        """Set training or evaluation mode; a frozen box model stays in evaluation mode."""
        super().train(mode)
        if self.freeze_boxes:
            for module in self.detr.box_modules():
                module.eval()
        return self

    def forward(
        self, batched_inputs: list[dict], normalizer: Normalizer | None = None
    ) -> dict[str, Tensor] | list[dict]:
        """Return losses in training, results in evaluation.

        Args:
            batched_inputs: one dict per image, as Detectron2's mappers return them: ``image``, (C, H, W); in training
                ``instances`` with ``gt_boxes``, ``gt_classes`` and, for a mask head, ``gt_masks``; in inference
                ``height`` and ``width`` of the result in pixels, by default those of ``image``.
            normalizer: divisors of the losses, where these inputs are one accumulation step of a batch; see
                :meth:`normalizer`. None: the inputs are the whole batch.

        Returns:
            In training the weighted losses by name; their sum is the loss. In inference one dict per image whose
            ``instances`` hold ``pred_boxes``, ``scores`` and ``pred_classes`` of every object query, or those that the
            thresholds leave; of a model with a mask head also ``pred_masks``, (N, H, W) bool. With panoptic
            rules also ``panoptic_seg``, see :func:`~detr_d2.modeling.postprocessing.panoptic_segmentation`. With a
            threshold also ``highest_score``, (), of all queries, for when no detection reaches it.
        """
        batch = self.preprocess_image(batched_inputs)
        if self.training:
            return self._losses(batch, batched_inputs, normalizer)
        sizes = [
            (int(x.get("height", size[0])), int(x.get("width", size[1])))
            for x, size in zip(batched_inputs, batch.image_sizes, strict=True)
        ]
        return self._results(self.detr(batch, all_layers=False), batch, sizes)

    def preprocess_image(self, batched_inputs: list[dict]) -> PaddedBatch:
        """Normalize the images and pad them with zeros, right and below, to the largest of the batch."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        return self.detr.backbone[0].pad([(x - self.pixel_mean) / self.pixel_std for x in images])

    def normalizer(self, batched_inputs: list[dict], accumulation_steps: int) -> Normalizer:
        """Return the divisors of the losses of a batch that is split into several forward passes.

        All processes call this together.
        """
        counts = [len(x["instances"]) for x in batched_inputs if "instances" in x]
        return self.criterion.normalizer(counts, self.detr.num_queries, accumulation_steps)

    def _results(self, output: Output, batch: PaddedBatch, sizes: list[Size]) -> list[dict]:
        """Select queries, compute their masks once, and assemble the results."""
        instances = box_instances(
            output, sizes, self.class_loss, self.score_threshold, self.class_thresholds, self.nms_threshold
        )
        results = [{"instances": x} for x in instances]
        if self.score_threshold > 0 or self.class_thresholds:
            scores, _, _ = get_class_loss(self.class_loss).rank(output.logits[-1].float())
            for result, highest in zip(results, scores.amax(1), strict=True):
                result["highest_score"] = highest
        if not self.has_masks:
            return results
        queries = [x.queries for x in instances]
        if self.panoptic is not None:
            selected = [self.panoptic.select(logits) for logits in output.logits[-1]]
            queries = [torch.cat((x, y.queries)) for x, y in zip(queries, selected, strict=True)]
        unique = [x.unique(return_inverse=True) for x in queries]
        masks = self.detr.masks(output.mask_inputs, [x for x, _ in unique])
        for i, (result, logits, (_, rows)) in enumerate(zip(results, masks, unique, strict=True)):
            detections = result["instances"]
            sizes_of_image = {
                "padded_size": batch.valid_sizes[i],
                "image_size": batch.image_sizes[i],
                "output_size": sizes[i],
            }
            of_detections, of_segments = rows[: len(detections)], rows[len(detections) :]
            detections.pred_masks = resized_masks(
                logits[of_detections], **sizes_of_image, threshold=self.mask_threshold
            )
            if self.panoptic is not None:
                result["panoptic_seg"] = panoptic_segmentation(
                    selected[i], logits[of_segments], **sizes_of_image, rules=self.panoptic
                )
        return results

    def _losses(
        self, batch: PaddedBatch, batched_inputs: list[dict], normalizer: Normalizer | None
    ) -> dict[str, Tensor]:
        targets = self._targets(batched_inputs)
        if normalizer is None:
            normalizer = self.criterion.normalizer(targets.counts, self.detr.num_queries)
        queries, noised = None, None
        if self.training_queries is not None:
            queries, noised = self.training_queries(self.detr.query_embed.weight, targets)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_boxes):
            all_layers = self.deep_supervision and not self.freeze_boxes
            output, memory = self.detr.forward_with_memory(batch, all_layers=all_layers, queries=queries)
        own, *others = [output] if queries is None else self.training_queries.split(output, queries)
        groups = own.num_images // len(targets)
        try:
            all_targets = targets.repeated(groups)
            matches = self.criterion.match(own, all_targets)
            masks = self._matched_masks(output, batch, targets, matches[-1, : len(targets)]) if self.has_masks else None
            losses, metrics = self.criterion.losses(own, all_targets, matches, masks, normalizer, copies=groups)
            if self.dense_supervision is not None:
                losses.update(self.dense_supervision(memory, targets, normalizer))
            if noised is not None:
                losses.update(self._denoising_losses(*others, noised, normalizer))
        except FloatingPointError as e:
            names = ", ".join(_name(x, i) for i, x in enumerate(batched_inputs))
            raise FloatingPointError(f"{e} Images of the batch: {names}.") from e
        _write_metrics(metrics)
        # The losses of frozen boxes are constants: they are reported as metrics, not minimized.
        return {name: losses[name] for name in MASK_LOSSES} if self.freeze_boxes else losses

    def _denoising_losses(self, output: Output, noised: NoisedQueries, normalizer: Normalizer) -> dict[str, Tensor]:
        groups = noised.block.groups
        losses, _ = self.criterion.losses(
            output,
            noised.targets.repeated(groups),
            noised.matches(len(output.logits)),
            normalizer=self.criterion.denoising_normalizer(normalizer, self.training_queries.denoising.negatives),
            copies=groups,
            ignored=noised.ignored,
        )
        return {name.replace("loss_", "loss_dn_"): value for name, value in losses.items()}

    def _matched_masks(self, output: Output, batch: PaddedBatch, targets: Targets, matches: Tensor) -> MatchedMasks:
        pairs = matched_pairs(matches, targets.counts, self.detr.num_queries)
        queries = pairs.queries
        if not pairs.total:
            # Distributed training waits for a gradient of every parameter, also in a process without objects.
            queries = (queries[0].new_zeros(1), *queries[1:])
        return MatchedMasks(pairs, self.detr.masks(output.mask_inputs, queries), batch.valid_sizes)

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
                num_queries=self.detr.num_queries,
                masks=self.has_masks,
            )
        return Targets.from_instances([x["instances"] for x in batched_inputs], self.device, masks=self.has_masks)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Any loader of this model, Detectron2's DefaultPredictor included, may read a foreign checkpoint.
        if not prefix:
            native = native_state_dict(state_dict, self.criterion.num_classes, self.has_masks)
            if native is not state_dict:
                state_dict.clear()
                state_dict.update(native)
        # Checkpoints hold the plain model: what is for training alone keeps its values.
        for name, x in split_training_only(self.state_dict())[1].items():
            state_dict.setdefault(f"{prefix}{name}", x)
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
