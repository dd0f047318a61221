"""DETR for Detectron2: importing this package registers it."""

from detr_d2._detectron2 import check_detectron2

check_detectron2()

from detr_d2 import model_zoo  # noqa: E402
from detr_d2.checkpoint import allow_original_checkpoints  # noqa: E402
from detr_d2.config import add_detr_config  # noqa: E402
from detr_d2.data import DetrDatasetMapper, register_coco_dataset  # noqa: E402
from detr_d2.engine import Trainer, build_optimizer, keep_freed_memory  # noqa: E402
from detr_d2.errors import UserError  # noqa: E402
from detr_d2.inference import optimize_for_inference  # noqa: E402
from detr_d2.matching import DETR_MATCHER_REGISTRY  # noqa: E402
from detr_d2.meta_arch import Detr  # noqa: E402
from detr_d2.modeling import DETR_TRANSFORMER_REGISTRY  # noqa: E402
from detr_d2.path_handlers import register_path_handlers  # noqa: E402

allow_original_checkpoints()
register_path_handlers()

__version__ = "0.1.0"

__all__ = [
    "DETR_MATCHER_REGISTRY",
    "DETR_TRANSFORMER_REGISTRY",
    "Detr",
    "DetrDatasetMapper",
    "Trainer",
    "UserError",
    "add_detr_config",
    "build_optimizer",
    "keep_freed_memory",
    "model_zoo",
    "optimize_for_inference",
    "register_coco_dataset",
]
