"""DETR for Detectron2: importing this package registers it."""

from detr_d2.utils.prerequisites import check_detectron2, is_light_command

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
    "load_config",
    "model_zoo",
    "optimize_for_inference",
    "register_coco_dataset",
]

# `detr-d2 --help` and shell completion answer at once: they need no model, and importing torch takes seconds.
if not is_light_command():
    check_detectron2()

    from detr_d2.checkpoint import allow_original_checkpoints, model_zoo
    from detr_d2.checkpoint.model_zoo import register_path_handlers
    from detr_d2.config import add_detr_config, load_config
    from detr_d2.criterion.matching import DETR_MATCHER_REGISTRY
    from detr_d2.data import DetrDatasetMapper, register_coco_dataset
    from detr_d2.engine import Trainer, build_optimizer
    from detr_d2.inference import optimize_for_inference
    from detr_d2.modeling import DETR_TRANSFORMER_REGISTRY
    from detr_d2.modeling.meta_arch import Detr
    from detr_d2.utils.allocator import keep_freed_memory
    from detr_d2.utils.errors import UserError

    allow_original_checkpoints()
    register_path_handlers()
