"""Dense supervision: in training the encoder's output predicts classes and boxes too, at every location.

Each object is learned at several locations, and its gradients reach the encoder and the backbone without the detour
through the decoder: the auxiliary heads of Co-DETR (arXiv 2211.12860, section 3.2), reduced to one.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.criterion import Normalizer, SetCriterion, get_class_loss
from detr_d2.modeling.layers import MLP, class_layer
from detr_d2.modeling.position_encoding import feature_grid
from detr_d2.structures import Memory, Output, Targets
from detr_d2.utils.precision import without_autocast

# Distance from an object's center, along each axis, within which locations learn it, in features: center sampling of
# FCOS (arXiv 2006.09214).
_RADIUS = 1.5


class DenseSupervision(nn.Module):
    """A head at every location of the encoder's output, and its losses. It is not part of the model in inference.

    Args:
        hidden_dim: C, channels of the encoder's output.
        criterion: criterion of the predictions, with a class loss of sigmoids.
        weight: factor on all losses. They are sums over an object's locations, of which there are up to nine.
    """

    @configurable
    def __init__(self, *, hidden_dim: int, criterion: SetCriterion, weight: float):
        super().__init__()
        self.criterion = criterion
        self.weight = weight
        self.class_embed = class_layer(hidden_dim, criterion.num_classes, criterion.class_loss.prior)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=2)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        detr = cfg.MODEL.DETR
        arguments = SetCriterion.from_config(cfg)
        if get_class_loss(detr.CLASS_LOSS).prior is None:
            # Of thousands of locations nearly all have no object: in a softmax they outweigh the others.
            arguments["class_loss"] = "focal"
        return {
            "hidden_dim": detr.HIDDEN_DIM,
            "criterion": SetCriterion(**arguments),
            "weight": detr.DENSE_WEIGHT,
        }

    def forward(self, memory: Memory, targets: Targets, normalizer: Normalizer) -> dict[str, Tensor]:
        """Return the weighted losses by name.

        Args:
            memory: the encoder's output for B images.
            targets: their objects.
            normalizer: divisors of the losses of the batch.
        """
        places = locations(memory)
        assigned, matches = assign(memory, places, targets)
        ignored = None if memory.padding_mask is None else memory.padding_mask.flatten(1)
        output = self.predict(memory, places)
        losses, _ = self.criterion.losses(output, assigned, matches, normalizer=normalizer, ignored=ignored)
        return {name.replace("loss_", "loss_dense_"): self.weight * loss for name, loss in losses.items()}

    def predict(self, memory: Memory, places: Tensor) -> Output:
        """Return the predictions of every location: a query each, row by row, with L = 1."""
        with without_autocast(memory.tensor.device):
            features = memory.tensor.flatten(2).transpose(1, 2).to(self.class_embed.weight.dtype)
            boxes = self.bbox_embed(features).float() + F.pad(places.logit(eps=1e-3), (0, 2))
            return Output(self.class_embed(features)[None], boxes.sigmoid()[None])


def locations(memory: Memory) -> Tensor:
    """Return (B, S, 2) x and y of the features' centers, row by row, relative to the images: over 1 where padded."""
    device = memory.tensor.device
    centers = feature_grid(*memory.tensor.shape[-2:], device) + 0.5
    return centers / memory.image_sizes.to(device, non_blocking=True)[:, None]


@torch.no_grad()
def assign(memory: Memory, places: Tensor, targets: Targets) -> tuple[Targets, Tensor]:
    """Assign an object to every location that lies in its box, near the center; of several objects the smallest.

    An object that has none so gets the location that is nearest to its center, unless that is a smaller object's.

    Args:
        memory: the encoder's output for B images.
        places: its :func:`locations`.
        targets: the objects of the images.

    Returns:
        The object of each of S locations as targets with T = S, any object where there is none; and matches,
        (1, B, S) int64: the index of the location itself, or -1 where it has no object.
    """
    targets = targets.padded_to(max(1, targets.labels.shape[1]))
    centers, sizes = targets.boxes[:, None].chunk(2, dim=-1)
    distance = (places[:, :, None] - centers).abs()
    device = distance.device
    in_features = distance * memory.image_sizes.to(device, non_blocking=True)[:, None, None]
    candidates = ((distance < sizes / 2) & (in_features < _RADIUS)).all(-1)
    candidates.scatter_(1, in_features.square().sum(-1).argmin(1, keepdim=True), True)
    counts = torch.tensor(targets.counts).to(device, non_blocking=True)
    candidates &= torch.arange(candidates.shape[2], device=device) < counts[:, None, None]
    area, chosen = torch.where(candidates, sizes.prod(-1), torch.inf).min(-1)
    boxes = targets.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    assigned = Targets(targets.labels.gather(1, chosen), boxes, targets.counts)
    indices = torch.arange(chosen.shape[1], device=device)
    return assigned, torch.where(area.isfinite(), indices, -1)[None]


def build_dense_supervision(cfg: CfgNode) -> DenseSupervision | None:
    """Build the head of ``MODEL.DETR.DENSE_WEIGHT``; None if the weight is 0."""
    return DenseSupervision(cfg) if cfg.MODEL.DETR.DENSE_WEIGHT else None
