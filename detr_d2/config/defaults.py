"""Config keys that DETR adds to Detectron2's."""

from detectron2.config import CfgNode as CN

TRAINING_ONLY = {"MODEL.DETR.QUERY_GROUPS": 1, "MODEL.DETR.DENOISING.GROUPS": 0, "MODEL.DETR.DENSE_WEIGHT": 0.0}
"""Key of each training-only part, with the value that leaves the part out."""


def add_detr_config(cfg: CN) -> None:
    """Add DETR's keys, with the defaults of the paper (arXiv 2005.12872), to ``cfg`` in place."""
    detr = cfg.MODEL.DETR = CN()

    # Foreground classes only; the no-object class is added by the model.
    detr.NUM_CLASSES = 80
    # With MODEL.MASK_ON: a checkpoint whose box model replaces that of MODEL.WEIGHTS and is kept fixed while the mask
    # head is trained. A resumed run loads its own checkpoint over the same box model; --eval-only loads MODEL.WEIGHTS
    # alone.
    detr.FROZEN_WEIGHTS = ""

    # "softmax": cross entropy over the classes and no-object. "focal": sigmoid focal loss of every class. "varifocal",
    # "aligned", "matchability": as focal, with the IoU of the matched box as target; see docs/TRAINING_RECIPES.md.
    detr.CLASS_LOSS = "softmax"
    # Weights of the losses. The box losses are L1 and 1 - GIoU of the matched pairs.
    detr.CLASS_WEIGHT = 1.0
    detr.L1_WEIGHT = 5.0
    detr.GIOU_WEIGHT = 2.0
    # Weight of the no-object class in the cross entropy.
    detr.NO_OBJECT_WEIGHT = 0.1
    # The mask head (MODEL.MASK_ON). Weights of its losses: sigmoid focal and dice of the matched pairs.
    mask = detr.MASK = CN()
    mask.FOCAL_WEIGHT = 1.0
    mask.DICE_WEIGHT = 1.0
    # Factor on the initial weights of the head for the attention maps, whose values are small. 1 is the original's;
    # with a value of about 100, masks appear within a few hundred iterations, see docs/PANOPTIC.md.
    mask.MAPS_GAIN = 1.0
    # A pixel belongs to a mask if its probability is higher.
    mask.THRESHOLD = 0.5
    # Number of queries whose masks are computed at once, which bounds the memory. None: a fast number for the device.
    mask.CHUNK = None

    # Detections with a lower score are left out of the results, and their masks are not computed.
    detr.TEST = CN()
    detr.TEST.SCORE_THRESHOLD = 0.0
    # One more minimum score for each class, in the order of the class head's rows; (): none. `detr-d2 calibrate` writes
    # them. Panoptic segments are selected without them.
    detr.TEST.CLASS_THRESHOLDS = ()
    # Of two detections of one class whose boxes have a higher IoU, the one with the lower score is left out. 1: no NMS,
    # which DETR is trained not to need.
    detr.TEST.NMS_THRESHOLD = 1.0
    # Side of tiles, in pixels of the file, that images are cut into and predicted on, TEST.BATCH_SIZE at a time; 0: no
    # tiles. See docs/USING_A_MODEL.md.
    detr.TEST.TILES = 0
    # Minimum share of a tile that its neighbor covers too.
    detr.TEST.TILE_OVERLAP = 0.2
    # Predict on the whole image as on one more tile.
    detr.TEST.TILE_WHOLE_IMAGE = False
    # IoU, or covered share of a box that a tile cuts, from which detections in two tiles are one object.
    detr.TEST.TILE_THRESHOLD = 0.5
    # Of evaluation and prediction, see docs/INFERENCE.md. Precision of the model: "float32", "bfloat16" or "float16".
    detr.TEST.PRECISION = "float32"
    # Use torch.compile, which takes minutes at the start.
    detr.TEST.COMPILE = False
    # Runtime: "pytorch", or on the CPU "openvino" or "onnxruntime": the model is exported once and cached. See
    # docs/EXPORT.md.
    detr.TEST.BACKEND = "pytorch"

    # Panoptic results in inference, one segment per pixel; needs the mask head. See docs/PANOPTIC.md.
    panoptic = detr.PANOPTIC = CN()
    panoptic.ENABLED = False
    # Number of thing classes, which come before the stuff classes. None: from the metadata of DATASETS, or 80 for a
    # model of COCO's 133 classes.
    panoptic.NUM_THINGS = None
    # Queries whose class is less probable are left out.
    panoptic.SCORE_THRESHOLD = 0.85
    # Segments of this many pixels or fewer are removed.
    panoptic.MIN_AREA = 4
    # False: as in the original, which does not merge segments of one stuff class after a small segment was removed.
    panoptic.MERGE_AFTER_REMOVAL = True

    # Losses after every decoder layer instead of the last only.
    detr.DEEP_SUPERVISION = True

    # Training-only parts, see docs/TRAINING_RECIPES.md. Weight of the losses of a head at every location of the
    # encoder's output; 0: none.
    detr.DENSE_WEIGHT = 0.0
    # Groups of NUM_OBJECT_QUERIES queries, each matched by itself;
    # the first is the model's own.
    detr.QUERY_GROUPS = 1
    # Groups of queries that are made from noised objects; 0: none.
    detr.DENOISING = CN()
    detr.DENOISING.GROUPS = 0
    # Maximum distance that an edge of a box is moved, relative to half of the box's width or height.
    detr.DENOISING.BOX_NOISE = 0.4
    # Probability with which a query is made from a random class.
    detr.DENOISING.LABEL_NOISE = 0.2
    # One more query per object with up to twice the noise, which becomes no-object.
    detr.DENOISING.NEGATIVES = True

    # A name in DETR_MATCHER_REGISTRY, and the weights of its cost. None: the weight of the loss of the same name.
    detr.MATCHER = "HungarianMatcher"
    detr.COST_CLASS = None
    detr.COST_L1 = None
    detr.COST_GIOU = None

    # "SinkhornMatcher", see docs/MATCHING.md. Weight of the entropy, relative to the spread of the costs.
    sinkhorn = detr.SINKHORN = CN()
    sinkhorn.EPSILON = 1e-3
    # The first iteration uses EPSILON_INIT times EPSILON, which EPSILON_DECAY multiplies in every iteration.
    sinkhorn.EPSILON_INIT = 50.0
    sinkhorn.EPSILON_DECAY = 0.9
    # A GPU always runs all of them, since it never reports to the host.
    sinkhorn.MAX_ITERATIONS = 100
    # An image has converged when less than this share of its objects' mass is misplaced.
    sinkhorn.THRESHOLD = 1e-2
    # The iteration from which updates are over-relaxed.
    sinkhorn.MOMENTUM_FROM = 50
    # Maximum number of passes that swap pairs of the rounded matching for cheaper ones.
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
    # Maximum number of objects that the model can find in an image.
    detr.NUM_OBJECT_QUERIES = 100
    # "SmcaTransformer" and "MultiScaleSmcaTransformer". Scale of the Gaussian: "type1" fixed, "type2" learned, "type3"
    # learned for x and y, "type4" learned for x, y and their product.
    detr.SMCA = CN()
    detr.SMCA.DYNAMIC_SCALE = "type3"
    # Divisor of the squared distance, in features.
    detr.SMCA.SMOOTH = 8.0
    # Modulate the first half of the heads only; modulate the second half of the queries only.
    detr.SMCA.HEAD_MIXTURE = False
    detr.SMCA.QUERY_MIXTURE = False
    # "MultiScaleSmcaTransformer", see docs/SMCA.md. One convolution of the encoder to the next coarser and one to the
    # next finer level for all levels; False: for each pair of levels.
    detr.SMCA.SHARED_CROSS_LEVEL = True
    # Convolutions of one feature before and after the others of the encoder.
    detr.SMCA.POINTWISE = True

    # Levels of the backbone joined to one, see docs/BACKBONES.md.
    detr.TOP_DOWN = CN()
    # Their names, ("res3", "res4"); the transformer reads the joined level, of the finest stride among them. Empty: it
    # reads the coarsest level alone.
    detr.TOP_DOWN.LEVELS = ()
    # Residual blocks after the joined level.
    detr.TOP_DOWN.BLOCKS = 0

    # "sine" or "learned".
    detr.POSITION_EMBEDDING = "sine"
    # In inference, the results of an image do not depend on its batch. False: in batches of images of different sizes
    # the padding leaks into the features, as in the original code.
    detr.BATCH_INVARIANT = True
    # The same in training. False: as in the original.
    detr.BATCH_INVARIANT_TRAINING = False

    # Weights that may differ from the model's; a resumed run loads exactly what it saved.
    load = detr.LOAD = CN()
    # "strict": the file must have as many object queries as the model. "resize": load as many as fit.
    load.QUERIES = "strict"
    # "by_row": load the class head if it has as many rows as the model's, otherwise initialize it. "by_name": load its
    # rows by the names of their classes, and initialize those of classes that are not in the file.
    load.CLASSES = "by_row"

    # A backbone of the timm library, where MODEL.BACKBONE.NAME is "build_timm_backbone".
    timm = cfg.MODEL.TIMM = CN()
    # A model of timm, with the tag of its weights: "resnet50.a1_in1k".
    timm.NAME = ""
    # Start from the weights that timm publishes under this name; not while MODEL.WEIGHTS names a whole model.
    timm.PRETRAINED = False
    # Start from a file or URL instead: weights of this model with timm's names.
    timm.WEIGHTS = ""
    # Which of timm's feature levels leave the backbone; negative numbers count from the last, the coarsest.
    timm.OUT_INDICES = (-1,)
    # Keep the statistics, scales and shifts of batch norms as they are, as DETR does.
    timm.FROZEN_BN = True
    # More keyword arguments of timm.create_model: {dynamic_img_size: True}.
    timm.ARGS = CN(new_allowed=True)

    # "ADAMW", "SGD", or "MUON", which learns faster from random weights. See docs/TRAINING_RECIPES.md.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # For timm's transformers: factor of the learning rate from each layer of the backbone to the one before it.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Precision of the network with SOLVER.AMP.ENABLED: "bfloat16", or "float16" with scaled gradients, on CUDA GPUs
    # only. Matching and losses stay in float32.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Accumulation steps: every process divides its share of SOLVER.IMS_PER_BATCH by this number, to save memory. The
    # optimizer makes one step with the sum of the gradients.
    cfg.SOLVER.ACCUMULATE = 1
    # Parts of the model, "backbone" or "transformer" or both, whose activations the backward pass recomputes instead of
    # keeping them: less memory, more time. See docs/TRAINING_SPEED.md.
    cfg.SOLVER.ACTIVATION_CHECKPOINTS = ()
    # Train the layers of the transformer with torch.compile, which takes a minute or more at the start. See
    # docs/TRAINING_SPEED.md.
    cfg.SOLVER.COMPILE = False

    # Evaluate and save an exponential moving average of the weights. See docs/TRAINING_RECIPES.md.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average that a step keeps; less in the first steps.
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Number of checkpoints of a run that are kept, the newest; 0: all.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # Save model_best.pth at the evaluation where this is highest: "bbox/AP", "segm/AP", "panoptic_seg/PQ". "": never.
    cfg.TEST.BEST_METRIC = ""
    # Early stopping: stop after this many consecutive evaluations without improvement; 0: never.
    cfg.TEST.PATIENCE = 0

    # Images per batch of the evaluation, sorted by shape for little padding.
    cfg.TEST.BATCH_SIZE = 1

    # Number of bands of the image files: 3, RGB, to which any file is converted; 1, grayscale; more, multispectral.
    # Unless it is 3, values are those of the files, 0 to 65535 with 16 bits, and MODEL.PIXEL_MEAN and PIXEL_STD have
    # one in the same units for each band. See docs/OWN_DATA.md.
    cfg.INPUT.CHANNELS = 3
    # What follows the flip in training. "detr": as the paper. "light": for small datasets whose images may be
    # flipped vertically.
    # "lsj": large scale jitter, to squares of the largest MIN_SIZE_TRAIN. See docs/TRAINING_RECIPES.md.
    cfg.INPUT.AUGMENTATION = "detr"
    # Brightness, contrast and saturation are multiplied by factors from 1 - COLOR_JITTER to 1 + COLOR_JITTER.
    cfg.INPUT.COLOR_JITTER = 0.0
    # Probability with which a training image becomes a mosaic of four random ones, each at half its size.
    cfg.INPUT.MOSAIC = 0.0
    # Probability with which objects of another training image are pasted over one; the annotations must have masks.
    cfg.INPUT.COPY_PASTE = 0.0
    # Share of the iterations after which images are no longer mixed.
    cfg.INPUT.MIX_UNTIL = 1.0
    # Progressive resizing: scale of the training images at the start, which grows evenly to 1 until this share of
    # the iterations. 1: off.
    cfg.INPUT.PROGRESSIVE = CN()
    cfg.INPUT.PROGRESSIVE.START = 1.0
    cfg.INPUT.PROGRESSIVE.UNTIL = 0.7
    # Shortest sides, in pixels, from which the size of an image before cropping is sampled.
    cfg.INPUT.CROP.RESIZE_SIZES = (400, 500, 600)
    # Resize images with PyTorch, three times as fast as with Pillow: about one value in a thousand differs, by one of
    # 255 gray levels. False gives the pixels of the original.
    cfg.INPUT.FAST_RESIZE_TRAIN = True
    cfg.INPUT.FAST_RESIZE_TEST = False
    # Memory of every worker for decoded training images, in 10^6 bytes: for small datasets. An image of COCO takes 0.9.
    cfg.DATALOADER.CACHE_MEGABYTES = 0

    # Experiment trackers, see docs/TRACKING.md: "tensorboard", "csv", "wandb", "mlflow", or (). The log and
    # metrics.json are always written.
    log = cfg.LOGGING = CN()
    log.TRACKERS = ("tensorboard",)
    # Names of the project, or experiment, and of the run. "": detr_d2, and the name of OUTPUT_DIR.
    log.PROJECT = ""
    log.RUN = ""
    # Number of images of DATASETS.TEST whose predictions the trackers show for every evaluation.
    log.IMAGES = 0
    # Send model_final.pth and model_best.pth to the trackers that keep files: "wandb" and "mlflow".
    log.ARTIFACTS = False
