"""Training settings of Detectron2's ``lazyconfig_train_net.py`` and of ``detr-d2 train``, and DETR's optimizer."""

from detectron2.config import LazyCall as L

from detr_d2.engine.optimizer import clipped_optimizer, parameter_groups

train = dict(
    output_dir="./output",
    init_checkpoint="detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    max_iter=554400,
    device="cuda",
    # Of the random numbers and the order of images; negative: a random one.
    seed=-1,
    # "bfloat16" or "float16". Detectron2's script uses float16.
    amp=dict(enabled=False, dtype="bfloat16"),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=None),
    eval_period=4000,
    log_period=20,
    # The following are settings of detr-d2 train. Number of forward passes per step.
    accumulate=1,
    # Averaged weights, which are evaluated and saved.
    ema=dict(enabled=False, decay=0.9998),
    # The checkpoint with the best metric, such as "bbox/AP", is kept; after this many evaluations without a better one,
    # if not 0, the training ends.
    best=dict(metric="", patience=0),
    # Images start at this scale and grow to full size until this share of the training.
    progressive=dict(start=1.0, until=0.7),
    # A checkpoint whose box model is kept fixed, with model.freeze_boxes=True.
    frozen_weights="",
    # As LOGGING of YAML configs, see docs/TRACKING.md.
    logging=dict(trackers=["tensorboard"], project="", run="", images=0, artifacts=False),
)

optimizer = L(clipped_optimizer)(
    # The script sets params.model.
    params=L(parameter_groups)(lr="${..lr}", weight_decay=1e-4, backbone_multiplier=0.1),
    lr=1e-4,
    max_norm=0.1,
)
