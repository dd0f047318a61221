"""The set criterion (arXiv 2005.12872, section 3.1): match, then compare the matched pairs."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from detr_d2.criterion import losses
from detr_d2.criterion.class_losses import IGNORED, Normalizer, get_class_loss
from detr_d2.criterion.mask_losses import MASK_LOSSES, MatchedMasks, mask_losses
from detr_d2.criterion.matching import Matcher, MatchingCost, build_matcher
from detr_d2.structures import Output, Targets
from detr_d2.utils.precision import without_autocast


class SetCriterion(nn.Module):
    """Losses of a set of predictions against a set of objects, for all decoder layers in one pass.

    Computes in float32 under any autocast.

    Args:
        num_classes: number of foreground classes.
        cost: cost of matching a query with an object.
        matcher: function from costs to matches.
        class_weight: weight of the class loss.
        l1_weight: weight of the L1 distance of boxes.
        giou_weight: weight of 1 - GIoU.
        focal_weight: weight of the focal loss of masks.
        dice_weight: weight of the dice loss of masks.
        no_object_weight: weight of the no-object class within the cross entropy; the others have 1.
        class_loss: a name in :data:`~detr_d2.criterion.class_losses.CLASS_LOSSES`.
    """

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
        super().__init__()
        self.class_loss = get_class_loss(class_loss)
        self.num_classes = num_classes
        self.cost = cost
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_bbox": l1_weight, "loss_giou": giou_weight}
        self.mask_weights = dict(zip(MASK_LOSSES, (focal_weight, dice_weight), strict=True))
        self.no_object_weight = no_object_weight
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

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

    def match(self, output: Output, targets: Targets) -> Tensor:
        """Return (L, B, T) int64, the query that each object is matched with after each decoder layer, or -1.

        Raises:
            FloatingPointError: an object can only be matched at a cost that is not finite.
        """
        with without_autocast(output.logits.device):
            return self.matcher(self.cost(output, targets), targets.counts)

    def normalizer(self, counts: Sequence[int], num_queries: int, accumulation_steps: int = 1) -> Normalizer:
        """Return the divisors of the losses of a batch. All processes call this together.

        Args:
            counts: number of objects in each image of this process's whole batch.
            num_queries: number of object queries of the model.
            accumulation_steps: number of forward passes that the batch is split into.
        """
        # Known on the host. With averages over the processes, gradients are those of one process with the joint batch.
        matched = sum(min(count, num_queries) for count in counts)
        class_weight_sum = matched + self.no_object_weight * (len(counts) * num_queries - matched)
        totals = torch.tensor([float(sum(counts)), class_weight_sum]).to(self.class_weights.device, non_blocking=True)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(totals)
            totals = totals / comm.get_world_size()
        return Normalizer(totals[0].clamp(min=1), totals[1], accumulation_steps)

    def denoising_normalizer(self, normalizer: Normalizer, negatives: bool) -> Normalizer:
        """Return the divisors of the losses of one denoising query per object, or of two with ``negatives``."""
        weight = normalizer.num_objects * (1 + self.no_object_weight * negatives)
        return normalizer._replace(class_weight_sum=weight)

    def losses(
        self,
        output: Output,
        targets: Targets,
        matches: Tensor,
        masks: MatchedMasks | None = None,
        normalizer: Normalizer | None = None,
        *,
        copies: int = 1,
        ignored: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compare the matched pairs.

        Args:
            output: predictions of the network.
            targets: objects of the batch.
            matches: (L, B, T) result of :meth:`match`.
            masks: masks of the matched pairs of the last layer, to compare masks too.
            normalizer: divisors of the losses. None: those of these targets.
            copies: number of times that the batch is repeated in the output and the targets; the losses are averages
                over them. Masks are those of the first.
            ignored: (B, Q) bool, True for queries without a class loss. None: there are none.

        Returns:
            The weighted losses, which are to be summed: ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last decoder
            layer, and with the suffix ``_0``, ``_1``, … of the layers before it; with masks also ``loss_mask`` and
            ``loss_dice``. And metrics: ``class_error``, ``cardinality_error`` and the losses without their weights,
            ``unweighted/ce`` and so on.
        """
        num_queries = output.logits.shape[2]
        if normalizer is None:
            normalizer = self.normalizer(targets.counts[: len(targets) // copies], num_queries)
        sums = normalizer.repeated(copies)
        with without_autocast(output.logits.device):
            logits, boxes = output.logits.float(), output.boxes.float()
            classes = losses.target_classes(targets.labels, matches, num_queries, self.num_classes)
            if ignored is not None:
                classes = classes.masked_fill(ignored, IGNORED)
            overlaps = None
            if self.class_loss.uses_overlaps:
                overlaps = losses.matched_overlaps(boxes, targets.boxes, matches)
            l1, giou = losses.box_losses(boxes, targets.boxes, matches)
            terms = {
                "loss_ce": self.class_loss.loss(logits, classes, self.class_weights, sums, overlaps),
                "loss_bbox": l1 / sums.num_objects,
                "loss_giou": giou / sums.num_objects,
            }
            metrics = _by_layer(
                {**_unweighted(terms, normalizer), "cardinality_error": losses.cardinality_error(logits, targets)}
            )
            error = losses.class_error(logits[-1], targets, matches[-1])
            if error is not None:
                metrics["class_error"] = error
            weighted = _by_layer({name: self.weights[name] * value for name, value in terms.items()})
            if masks is not None:
                terms = dict(zip(MASK_LOSSES, mask_losses(masks, targets), strict=True))
                terms = {name: value / normalizer.num_objects for name, value in terms.items()}
                metrics.update(_unweighted(terms, normalizer))
                weighted.update({name: self.mask_weights[name] * value for name, value in terms.items()})
        return weighted, metrics


def _unweighted(terms: dict[str, Tensor], normalizer: Normalizer) -> dict[str, Tensor]:
    # The terms of one accumulation step add up to those of the batch; metrics are averages.
    steps = normalizer.accumulation_steps
    return {name.replace("loss_", "unweighted/"): steps * value.detach() for name, value in terms.items()}


def _by_layer(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split (L,) values into scalars: the last layer's under the plain name, the others' with their index."""
    last = {name: value[-1] for name, value in values.items()}
    others = {f"{name}_{i}": x for name, value in values.items() for i, x in enumerate(value[:-1])}
    return {**last, **others}
