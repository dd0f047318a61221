"""Every config key that DETR adds to Detectron2's."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.utils.registry import Registry

from detr_d2.utils.errors import UserError

PRECISIONS = ("float32", "bfloat16", "float16")
"""What MODEL.DETR.TEST.PRECISION may be; the names are PyTorch's."""


def add_detr_config(cfg: CN) -> None:
    """Add DETR's keys, with the defaults of the paper (arXiv 2005.12872), to ``cfg`` in place."""
    detr = cfg.MODEL.DETR = CN()

    # Foreground classes only; the no-object class is added by the model.
    detr.NUM_CLASSES = 80
    # With MODEL.MASK_ON: a checkpoint whose box model is loaded after MODEL.WEIGHTS, in place of its, and kept fixed
    # while the mask head is trained. A resumed run loads its own checkpoint, over the same box model; --eval-only loads
    # MODEL.WEIGHTS alone.
    detr.FROZEN_WEIGHTS = ""

    # "softmax": cross entropy over the classes and no-object. "focal": sigmoid focal loss a class.
    detr.CLASS_LOSS = "softmax"
    # Weights of the losses. The box losses are L1 and 1 - GIoU of the matched pairs.
    detr.CLASS_WEIGHT = 1.0
    detr.L1_WEIGHT = 5.0
    detr.GIOU_WEIGHT = 2.0
    # Weight of the no-object class in the cross entropy.
    detr.NO_OBJECT_WEIGHT = 0.1
    # Of the mask head (MODEL.MASK_ON). Weights of its losses: sigmoid focal and dice of the matched pairs.
    mask = detr.MASK = CN()
    mask.FOCAL_WEIGHT = 1.0
    mask.DICE_WEIGHT = 1.0
    # Factor on the initial weights by which the head reads the attention maps, whose values are small: 1 as in the
    # original; about 100 lets masks appear within some hundred iterations, see docs/PANOPTIC.md.
    mask.MAPS_GAIN = 1.0
    # A pixel belongs to a mask if its probability is higher.
    mask.THRESHOLD = 0.5
    # For how many queries at once masks are made, which bounds the memory. None: as is fast on the device.
    mask.CHUNK = None

    # Detections with a lower score are left out of the results, and their masks are not computed.
    detr.TEST = CN()
    detr.TEST.SCORE_THRESHOLD = 0.0
    # Of --eval-only and tools/predict.py, see docs/INFERENCE.md: what the model computes in, one of PRECISIONS, and
    # whether with torch.compile, which takes minutes at the start.
    detr.TEST.PRECISION = "float32"
    detr.TEST.COMPILE = False

    # Panoptic results in inference, one segment a pixel; needs the mask head. See docs/PANOPTIC.md.
    panoptic = detr.PANOPTIC = CN()
    panoptic.ENABLED = False
    # The classes of the first rows are things, those after them stuff. None: as the metadata of DATASETS say, and
    # COCO's 80 where a model has COCO's 133 classes.
    panoptic.NUM_THINGS = None
    # Queries whose class is less probable are left out.
    panoptic.SCORE_THRESHOLD = 0.85
    # Segments of this many pixels or fewer are removed.
    panoptic.MIN_AREA = 4
    # False: as the original, which no longer merges stuff of one class once a small segment was removed.
    panoptic.MERGE_AFTER_REMOVAL = True

    # Losses after every decoder layer instead of the last only.
    detr.DEEP_SUPERVISION = True

    # A name in DETR_MATCHER_REGISTRY, and the weights of its cost. None: as the loss of the same name.
    detr.MATCHER = "HungarianMatcher"
    detr.COST_CLASS = None
    detr.COST_L1 = None
    detr.COST_GIOU = None

    # Of "SinkhornMatcher", see docs/MATCHING.md. The weight of the entropy, relative to the spread of the costs.
    sinkhorn = detr.SINKHORN = CN()
    sinkhorn.EPSILON = 1e-3
    # How many times EPSILON that weight is at first, and its factor an iteration.
    sinkhorn.EPSILON_INIT = 50.0
    sinkhorn.EPSILON_DECAY = 0.9
    # A GPU always pays for all of them, since it never reports to the host.
    sinkhorn.MAX_ITERATIONS = 100
    # An image is done when less than this share of its objects' mass is misplaced.
    sinkhorn.THRESHOLD = 1e-2
    # The iteration from which updates are over-relaxed.
    sinkhorn.MOMENTUM_FROM = 50
    # The most passes that swap pairs of the rounded matching for cheaper ones.
    sinkhorn.SWAP_SWEEPS = 20

    # A name in DETR_TRANSFORMER_REGISTRY.
    detr.TRANSFORMER = "DetrTransformer"
    detr.NHEADS = 8
    detr.DROPOUT = 0.1
    detr.DIM_FEEDFORWARD = 2048
    detr.ENC_LAYERS = 6
    detr.DEC_LAYERS = 6
    # Layer norm before attention and feed-forward instead of after.
    detr.PRE_NORM = False
    detr.HIDDEN_DIM = 256
    # The largest number of objects that the model can find in an image.
    detr.NUM_OBJECT_QUERIES = 100
    # Of "SmcaTransformer". The Gaussian's scale: "type1" fixed, "type2" learned, "type3" learned along x and y,
    # "type4" along x, y and of their product.
    detr.SMCA = CN()
    detr.SMCA.DYNAMIC_SCALE = "type3"
    # What the squared distance, in features, is divided by.
    detr.SMCA.SMOOTH = 8.0
    # Modulate the first half of the heads only; modulate the second half of the queries only.
    detr.SMCA.HEAD_MIXTURE = False
    detr.SMCA.QUERY_MIXTURE = False

    # "sine" or "learned".
    detr.POSITION_EMBEDDING = "sine"
    # At inference, each image's results are those that it would have alone. False: in batches of images of different
    # sizes the padding shines into the features, as in the original code.
    detr.BATCH_INVARIANT = True
    # The same in training. False: as the original was trained.
    detr.BATCH_INVARIANT_TRAINING = False

    # What loading weights may change; a resumed run loads exactly what it saved.
    load = detr.LOAD = CN()
    # "strict": the file has as many object queries as the model. "resize": load as many as fit.
    load.QUERIES = "strict"
    # "by_row": the class head is loaded if it has as many rows, and starts anew otherwise. "by_name": its rows are
    # loaded by the names of the classes; those that the file does not hold start anew.
    load.CLASSES = "by_row"

    # A backbone of the timm library, where MODEL.BACKBONE.NAME is "build_timm_backbone".
    timm = cfg.MODEL.TIMM = CN()
    # A model of timm, with the tag of its weights: "resnet50.a1_in1k".
    timm.NAME = ""
    # Start from the weights that timm publishes under this name; not while MODEL.WEIGHTS names a whole model.
    timm.PRETRAINED = False
    # Start from a file or URL instead: weights of this model, as timm names them.
    timm.WEIGHTS = ""
    # Which of timm's feature levels leave the backbone; negative numbers count from the last, the coarsest.
    timm.OUT_INDICES = (-1,)
    # Keep the statistics, scales and shifts of batch norms as they are, as DETR does.
    timm.FROZEN_BN = True
    # More arguments of timm.create_model, by name: {dynamic_img_size: True}.
    timm.ARGS = CN(new_allowed=True)

    # "ADAMW" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # With SOLVER.AMP.ENABLED, what the network computes in: "bfloat16", or "float16", with scaled gradients, on CUDA
    # GPUs. Matching and losses stay in float32.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Every process takes its share of SOLVER.IMS_PER_BATCH in so many parts, one after the other, which takes less
    # memory; the optimizer makes one step with the sum of their gradients.
    cfg.SOLVER.ACCUMULATE = 1
    # Parts of the model, "backbone" or "transformer" or both, whose activations are computed again in the backward pass
    # instead of being kept: less memory, more time. See docs/TRAINING_SPEED.md.
    cfg.SOLVER.ACTIVATION_CHECKPOINTS = ()
    # Train the layers of the transformer with torch.compile, which takes a minute or more at the start. See
    # docs/TRAINING_SPEED.md.
    cfg.SOLVER.COMPILE = False

    # Images that are evaluated together, sorted by shape so that little is padded.
    cfg.TEST.BATCH_SIZE = 1

    # Shortest sides, in pixels, one of which an image is resized to before it is cropped.
    cfg.INPUT.CROP.RESIZE_SIZES = (400, 500, 600)
    # Resize images with PyTorch, three times as fast as with Pillow: of a thousand values about one differs, by one of
    # 255 gray levels. Without it the pixels are the original's.
    cfg.INPUT.FAST_RESIZE_TRAIN = True
    cfg.INPUT.FAST_RESIZE_TEST = False
    # How much every worker may spend on keeping decoded training images, in 10^6 bytes: for small datasets. An image of
    # COCO takes 0.9.
    cfg.DATALOADER.CACHE_MEGABYTES = 0


# Their default is None, so that they take whatever they are given.
_OPTIONAL_NUMBERS = {
    "COST_CLASS": (int, float),
    "COST_L1": (int, float),
    "COST_GIOU": (int, float),
    "MASK.CHUNK": (int,),
    "PANOPTIC.NUM_THINGS": (int,),
}


def choice(table: Mapping[str, Any] | Registry, key: str, name: str) -> Any:
    """The entry of ``table`` that the config key ``key`` names.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in table:
        raise UserError(f"{key} is {name!r}: choose one of {', '.join(sorted(dict(table)))}.")
    return table.get(name)


def check_detr_config(cfg: CN) -> None:
    """Refuse a config that no DETR can be built from.

    Raises:
        UserError: names the key and what it may be.
    """
    if "DETR" not in cfg.MODEL:
        raise UserError("The config has no MODEL.DETR: call detr_d2.add_detr_config(cfg) before merging a YAML file.")
    detr = cfg.MODEL.DETR
    _check_optional_numbers(detr)
    for key in ("NUM_CLASSES", "NHEADS", "DEC_LAYERS", "NUM_OBJECT_QUERIES", "HIDDEN_DIM", "DIM_FEEDFORWARD"):
        if detr[key] < 1:
            raise UserError(f"MODEL.DETR.{key} is {detr[key]}: set 1 or more.")
    if detr.HIDDEN_DIM % detr.NHEADS:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} is not a multiple of MODEL.DETR.NHEADS {detr.NHEADS}: "
            "every head takes an equal share of the channels."
        )
    if detr.HIDDEN_DIM % 4:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM is {detr.HIDDEN_DIM}: set a multiple of 4, "
            "for the sines and cosines of two axes in the position embedding."
        )
    if not 0 < detr.MASK.THRESHOLD < 1:
        raise UserError(f"MODEL.DETR.MASK.THRESHOLD is {detr.MASK.THRESHOLD}: set a probability between 0 and 1.")
    if detr.MASK.MAPS_GAIN <= 0:
        raise UserError(f"MODEL.DETR.MASK.MAPS_GAIN is {detr.MASK.MAPS_GAIN}: set a positive factor.")
    if detr.MASK.CHUNK is not None and detr.MASK.CHUNK < 1:
        raise UserError(f"MODEL.DETR.MASK.CHUNK is {detr.MASK.CHUNK}: set 1 or more, or None.")
    if cfg.DATALOADER.CACHE_MEGABYTES < 0:
        raise UserError(f"DATALOADER.CACHE_MEGABYTES is {cfg.DATALOADER.CACHE_MEGABYTES}: set 0 or more.")
    if cfg.TEST.BATCH_SIZE < 1:
        raise UserError(f"TEST.BATCH_SIZE is {cfg.TEST.BATCH_SIZE}: set 1 or more.")
    if not 0 <= detr.TEST.SCORE_THRESHOLD <= 1:
        raise UserError(f"MODEL.DETR.TEST.SCORE_THRESHOLD is {detr.TEST.SCORE_THRESHOLD}: set a score from 0 to 1.")
    check_precision(detr.TEST.PRECISION)
    _check_panoptic(cfg)
    if detr.FROZEN_WEIGHTS and not cfg.MODEL.MASK_ON:
        raise UserError(
            "MODEL.DETR.FROZEN_WEIGHTS is for training a mask head over a fixed box model: set MODEL.MASK_ON True, or "
            "set MODEL.WEIGHTS to start from a checkpoint."
        )


def check_precision(name: str) -> None:
    """Refuse what is none of :data:`PRECISIONS`.

    Raises:
        UserError: lists them.
    """
    if name not in PRECISIONS:
        raise UserError(f"MODEL.DETR.TEST.PRECISION is {name!r}: choose one of {', '.join(PRECISIONS)}.")


def _check_optional_numbers(detr: CN) -> None:
    for key, types in _OPTIONAL_NUMBERS.items():
        section, _, name = key.rpartition(".")
        value = (detr[section] if section else detr)[name]
        if value is not None and type(value) not in types:
            what = "number" if float in types else "whole number"
            raise UserError(f"MODEL.DETR.{key} is {value!r}: set a {what}, or None.")


def _check_panoptic(cfg: CN) -> None:
    detr = cfg.MODEL.DETR
    panoptic = detr.PANOPTIC
    if panoptic.ENABLED and not cfg.MODEL.MASK_ON:
        raise UserError("MODEL.DETR.PANOPTIC.ENABLED needs masks: set MODEL.MASK_ON True.")
    if not 0 <= panoptic.SCORE_THRESHOLD <= 1:
        raise UserError(
            f"MODEL.DETR.PANOPTIC.SCORE_THRESHOLD is {panoptic.SCORE_THRESHOLD}: set a probability from 0 to 1."
        )
    if panoptic.MIN_AREA < 0:
        raise UserError(f"MODEL.DETR.PANOPTIC.MIN_AREA is {panoptic.MIN_AREA}: set 0 or more, in pixels.")
    if panoptic.NUM_THINGS is not None and not 0 <= panoptic.NUM_THINGS <= detr.NUM_CLASSES:
        raise UserError(
            f"MODEL.DETR.PANOPTIC.NUM_THINGS is {panoptic.NUM_THINGS}: set how many of the "
            f"MODEL.DETR.NUM_CLASSES {detr.NUM_CLASSES} classes are things."
        )
