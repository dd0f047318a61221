"""The set criterion (arXiv 2005.12872, section 3.1): match, then compare the matched pairs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from detr_d2.config import choice
from detr_d2.criterion import metrics, terms
from detr_d2.criterion.classification import CLASS_LOSSES, Totals
from detr_d2.criterion.masks import MASK_LOSSES, MaskPredictor, mask_losses, matched_pairs
from detr_d2.criterion.matching import Matcher, MatchingCost, build_matcher
from detr_d2.structures import Predictions, Targets
from detr_d2.utils.precision import without_autocast


class SetCriterion(nn.Module):
    """Losses of a set of predictions against a set of objects, for all decoder layers in one pass."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        cost: MatchingCost,
        matcher: Matcher,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_weight: float = 1.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
        class_loss: str = "softmax",
    ):
        """
        Args:
            num_classes: foreground classes.
            class_weight, l1_weight, giou_weight: weights of the terms of the loss.
            focal_weight, dice_weight: weights of the losses of masks.
            no_object_weight: weight of the no-object class within the cross entropy; the others have 1.
            class_loss: "softmax" or "focal".
        """
        super().__init__()
        self.class_loss = choice(CLASS_LOSSES, "MODEL.DETR.CLASS_LOSS", class_loss)
        self.num_classes = num_classes
        self.cost = cost
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_bbox": l1_weight, "loss_giou": giou_weight}
        self.mask_weights = dict(zip(MASK_LOSSES, (focal_weight, dice_weight), strict=True))
        self.no_object_weight = no_object_weight
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._batch_counts: tuple[int, ...] | None = None
        self._parts = 1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        detr = cfg.MODEL.DETR
        return {
            "num_classes": detr.NUM_CLASSES,
            "cost": MatchingCost(cfg),
            "matcher": build_matcher(cfg),
            "class_weight": detr.CLASS_WEIGHT,
            "l1_weight": detr.L1_WEIGHT,
            "giou_weight": detr.GIOU_WEIGHT,
            "focal_weight": detr.MASK.FOCAL_WEIGHT,
            "dice_weight": detr.MASK.DICE_WEIGHT,
            "no_object_weight": detr.NO_OBJECT_WEIGHT,
            "class_loss": detr.CLASS_LOSS,
        }

    @contextmanager
    def of_batch(self, counts: Sequence[int], parts: int) -> Iterator[None]:
        """Within the block, divide losses by what those of a batch are divided by that is taken in ``parts``.

        Args:
            counts: how many objects each image of the whole batch has.
        """
        self._batch_counts, self._parts = tuple(counts), parts
        try:
            yield
        finally:
            self._batch_counts, self._parts = None, 1

    def forward(
        self, predictions: Predictions, targets: Targets, masks: MaskPredictor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Computes in float32 under any autocast.

        Args:
            masks: makes the masks of the matched pairs, where ``targets`` have masks.

        Returns:
            The weighted losses to sum: ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last decoder layer,
            and with the suffix ``_0``, ``_1``, … of the layers before it; with masks also ``loss_mask`` and
            ``loss_dice`` of the last layer. And what to watch: ``class_error``, ``cardinality_error`` and the losses
            without their weights, ``unweighted/ce`` and so on.
        """
        device = predictions.logits.device
        with without_autocast(device):
            predictions = predictions._replace(logits=predictions.logits.float(), boxes=predictions.boxes.float())
            matches = self.matcher(self.cost(predictions, targets), targets.counts)
            totals = self._totals(targets, predictions.logits.shape[2], device)
            values = self._losses(predictions, targets, matches, totals)
            whole = {name: self._parts * value for name, value in values.items()}
            watched = self._metrics(predictions, targets, matches, whole)
        losses = _by_layer({name: self.weights[name] * value for name, value in values.items()})
        if masks is not None:
            values = self._mask_losses(masks, targets, matches[-1], totals)
            losses.update({name: self.mask_weights[name] * value for name, value in values.items()})
            watched.update(_unweighted({name: self._parts * value for name, value in values.items()}))
        return losses, watched

    def _losses(self, predictions: Predictions, targets: Targets, matches: Tensor, totals: Totals) -> dict[str, Tensor]:
        classes = terms.target_classes(targets.labels, matches, predictions.logits.shape[2], self.num_classes)
        l1, giou = terms.box_losses(predictions.boxes, targets.boxes, matches)
        return {
            "loss_ce": self.class_loss(predictions.logits, classes, self.class_weights, totals),
            "loss_bbox": l1 / totals.boxes,
            "loss_giou": giou / totals.boxes,
        }

    @staticmethod
    def _mask_losses(masks: MaskPredictor, targets: Targets, matches: Tensor, totals: Totals) -> dict[str, Tensor]:
        pairs = matched_pairs(matches, targets.counts, masks.num_queries)
        logits = masks.predict(pairs)
        with without_autocast(matches.device):
            focal, dice = mask_losses(logits, pairs, targets, masks.frames)
            return dict(zip(MASK_LOSSES, (focal / totals.boxes, dice / totals.boxes), strict=True))

    def _totals(self, targets: Targets, num_queries: int, device: torch.device) -> Totals:
        # Both are known on the host. Their average makes the gradients those of one process with the joint batch.
        counts = targets.counts if self._batch_counts is None else self._batch_counts
        matched = sum(min(count, num_queries) for count in counts)
        class_weight = matched + self.no_object_weight * (len(counts) * num_queries - matched)
        totals = torch.tensor([float(sum(counts)), class_weight]).to(device, non_blocking=True)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(totals)
            totals = totals / comm.get_world_size()
        return Totals(totals[0].clamp(min=1), totals[1])

    @staticmethod
    @torch.no_grad()
    def _metrics(
        predictions: Predictions, targets: Targets, matches: Tensor, values: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        watched = _unweighted(values)
        watched["cardinality_error"] = metrics.cardinality_error(predictions.logits, targets)
        watched = _by_layer(watched)
        error = metrics.class_error(predictions.logits[-1], targets, matches[-1])
        return watched if error is None else {"class_error": error, **watched}


def _unweighted(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("loss_", "unweighted/"): value.detach() for name, value in values.items()}


def _by_layer(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """(L,) values -> scalars, the last layer's under the plain name, the others' with their index."""
    last = {name: value[-1] for name, value in values.items()}
    others = {f"{name}_{i}": x for name, value in values.items() for i, x in enumerate(value[:-1])}
    return {**last, **others}
