"""Change of DETR to SMCA with the focal loss (arXiv 2101.07448)."""

from detectron2.config import LazyCall as L

from detr_d2.criterion import get_class_loss
from detr_d2.modeling import SmcaTransformer

from .detr import model

_sizes = {name: value for name, value in model.network.transformer.items() if name != "_target_"}
model.network.transformer = L(SmcaTransformer)(**_sizes, dynamic_scale="type3", smooth=8.0)
model.network.num_queries = 300
model.network.class_prior = get_class_loss("focal").prior
model.class_loss = "focal"
model.criterion.class_loss = "focal"
model.criterion.class_weight = 2.0
model.criterion.cost.class_loss = "focal"
model.criterion.cost.class_weight = 2.0
