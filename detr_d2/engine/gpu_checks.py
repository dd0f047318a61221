"""Checks that prediction and training work on a device: precisions, compiling, memory, several processes."""

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from detr_d2.checkpoint import model_zoo
from detr_d2.config import load_config
from detr_d2.data.shapes import ShapesSpec, register_shapes
from detr_d2.engine.launching import launch_processes
from detr_d2.engine.optimizer import build_optimizer
from detr_d2.engine.step import TrainingStep
from detr_d2.engine.trainer import Trainer
from detr_d2.inference import optimize_for_inference
from detr_d2.modeling.activation_checkpoints import checkpoint_activations
from detr_d2.modeling.compilation import CompiledForward, compile_for_training

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02}
"""Tolerances of scores, and of boxes relative to the image."""
_GRADIENT_TOLERANCE = 1e-3  # Relative to the norm of all gradients.
MIN_AP50 = 75.0
"""AP50 that a short training on rendered shapes exceeds in every precision; on a CPU in bfloat16 it was 91.6."""
_ITERATIONS = 400
_SMALL, _R50 = "smca_shapes_cpu", "detr_256_6_6_torchvision"
_FEW_SHAPES = "shapes_check_gpu"
# Equally improbable classes would hide differences.
_SHARPNESS = 10


class NotRun(Exception):
    """A check can't run here; the message is the reason."""


class Failed(Exception):
    """A check has failed; the message holds what was measured."""


@dataclass(frozen=True)
class Settings:
    """What the checks run on; ``folder`` is for their files, and quick ones use tiny images and few iterations."""

    device: str
    quick: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return torch.device(self.device).type == "cuda"

    def require_gpu(self) -> None:
        """Raise :class:`NotRun` on other devices."""
        if not self.on_gpu:
            raise NotRun("no CUDA")

    def config(self, name: str, *options: object) -> CfgNode:
        """Load a packaged config without weights, for the device."""
        options = ("MODEL.DEVICE", self.device, "MODEL.WEIGHTS", "", "MODEL.DETR.DROPOUT", 0.0, *options)
        return load_config(model_zoo.get_config_file(name), [str(x) for x in options])

    def batch(self, cfg: CfgNode, side: int, images: int = 2) -> list[dict]:
        """Return random images with three objects each, the second one narrower."""
        generator, batch = torch.Generator().manual_seed(0), []
        side = min(side, 96) if self.quick else side
        for i in range(images):
            height, width = side, 4 * side // (3 + i)
            corners = torch.rand(3, 2, 2, generator=generator).sort(1).values.flatten(1)
            objects = Instances((height, width), gt_boxes=Boxes(corners * torch.tensor([width, height] * 2)))
            objects.gt_classes = torch.arange(3) % cfg.MODEL.DETR.NUM_CLASSES
            image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
            batch.append({"image": image.pin_memory() if self.on_gpu else image, "instances": objects})
        return batch


def _build(cfg: CfgNode) -> nn.Module:
    """Build a random model, the same on every device, whose classes differ."""
    torch.manual_seed(0)
    cpu = cfg.clone()
    cpu.MODEL.DEVICE = "cpu"
    model = build_model(cpu).eval()
    with torch.no_grad():
        model.detr.class_embed.weight.mul_(_SHARPNESS)
    return model.to(cfg.MODEL.DEVICE)


@torch.no_grad()
def _predict(model: nn.Module, batch: list[dict], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    context = nullcontext() if dtype is None else torch.autocast(model.device.type, dtype)
    with context:
        instances = [x["instances"] for x in model(batch)]
    boxes = [x.pred_boxes.tensor / x.pred_boxes.tensor.new_tensor(x.image_size[::-1] * 2) for x in instances]
    return {"scores": torch.stack([x.scores for x in instances]).cpu(), "boxes": torch.stack(boxes).cpu()}


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> str:
    differences = {name: (found[name].float() - x).abs().max().item() for name, x in expected.items()}
    return _judge(all(x <= tolerance for x in differences.values()), _figures(differences, tolerance))


def _figures(differences: dict[str, float], tolerance: float) -> str:
    return f"differences: {', '.join(f'{n} {x:.1e}' for n, x in differences.items())} (tolerance {tolerance:g})"


def _judge(passed: bool, figures: str) -> str:
    if not passed:
        raise Failed(figures)
    return figures


def equals_cpu(settings: Settings, config: str, side: int) -> str:
    """Compare the predictions of the device with those of the CPU, both in float32 without TF32."""
    settings.require_gpu()
    cfg = settings.config(config)
    model, batch = _build(cfg), settings.batch(cfg, side)
    return _compare(_predict(model, batch), _predict(copy.deepcopy(model).cpu(), batch), TOLERANCES["float32"])


def half_precision(settings: Settings, precision: str) -> str:
    """Compare autocast, and the model that is cast for inference, with float32."""
    if precision == "float16":
        settings.require_gpu()
    cfg = settings.config(_R50)
    model, batch = _build(cfg), settings.batch(cfg, 800)
    expected = _predict(model, batch)
    found = {
        "autocast": _predict(model, batch, getattr(torch, precision)),
        "optimized": _predict(optimize_for_inference(model, precision), batch),
    }
    return "; ".join(f"{name}: {_compare(x, expected, TOLERANCES[precision])}" for name, x in found.items())


def short_training(settings: Settings, precision: str) -> str:
    """Train on rendered shapes and compare AP50 with :data:`MIN_AP50`."""
    if precision == "float16":
        settings.require_gpu()
    amp = () if precision == "float32" else ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", precision)
    # The first steps are not timed.
    iterations, floor = (5, 0.0) if settings.quick else (_ITERATIONS, MIN_AP50)
    cfg = settings.config("smca_shapes_fast_cpu", "SOLVER.MAX_ITER", iterations, "SEED", 1, *amp)
    cfg.TEST.EVAL_PERIOD, cfg.OUTPUT_DIR = iterations, str(settings.folder / precision)
    if settings.quick:
        if _FEW_SHAPES not in DatasetCatalog:
            register_shapes(_FEW_SHAPES, ShapesSpec(num_images=8, seed=0, sides=(48, 64)))
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (_FEW_SHAPES,)
        cfg.DATALOADER.NUM_WORKERS = 0
    trainer = Trainer(cfg)
    results = trainer.train()["bbox"]
    seconds = trainer.storage.history("time").median(iterations)
    figures = f"AP {results['AP']:.1f}, AP50 {results['AP50']:.1f} (at least {floor:g}) after {iterations} iterations"
    # Without any detection AP is not a number.
    return _judge(not results["AP50"] < floor, f"{figures} of {1000 * seconds:.0f} ms")


def host_waits(settings: Settings) -> str:
    """Count how often the host waits for the GPU in a training step: once, for the costs of the matching."""
    settings.require_gpu()
    step = _make_step(settings)
    with EventStorage():
        step.run_step()
        step.iter = 1
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step.run_step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waits = [Path(x.filename).name for x in caught if "synchronizing CUDA operation" in str(x.message)]
    return _judge(waits == ["hungarian.py"], f"{len(waits)} in a step: {', '.join(waits)}")


def _make_step(settings: Settings) -> TrainingStep:
    cfg = settings.config(_R50)
    model, batch = _build(cfg).train(), settings.batch(cfg, 256)
    step = TrainingStep(model, [batch] * 2, build_optimizer(cfg, model), log_period=20)
    step.iter = 0
    return step


def compiled_inference(settings: Settings) -> str:
    """Compare ``torch.compile`` with eager."""
    cfg = settings.config(_SMALL)
    model, batch = _build(cfg), settings.batch(cfg, 256)
    optimized = optimize_for_inference(model, compile=True)
    found = _predict(optimized, batch)
    return f"{_compiled_modules(optimized)}; {_compare(found, _predict(model, batch), TOLERANCES['float32'])}"


def compiled_training(settings: Settings) -> str:
    """Compare losses and gradients of compiled layers with those of eager."""
    return _compare_gradients(settings, lambda model: compile_for_training(model.detr.transformer), _compiled_modules)


def _compiled_modules(model: nn.Module) -> str:
    """Return how many modules run compiled, which have a fallback; all of those that should."""
    forwards = [x.forward for x in model.modules() if isinstance(vars(x).get("forward"), CompiledForward)]
    if not forwards:
        raise NotRun(f"this version of PyTorch, {torch.__version__}, can't compile it")
    works = sum(bool(x.works) for x in forwards)
    return _judge(works == len(forwards), f"{works} of {len(forwards)} modules compiled")


def checkpoints(settings: Settings) -> str:
    """Compare gradients and memory of activation checkpoints with those of stored activations."""
    parts = ("backbone", "transformer")
    return _compare_gradients(settings, lambda model: checkpoint_activations(model.detr, parts), lower_memory=True)


def _compare_gradients(
    settings: Settings,
    prepare: Callable[[nn.Module], object],
    describe: Callable[[nn.Module], str] = lambda model: "",
    lower_memory: bool = False,
) -> str:
    """Compare the gradients, and with ``lower_memory`` the peak of memory, with those of a model as it is built."""
    cfg = settings.config(_SMALL)
    batch, results, peaks = settings.batch(cfg, 512), [], []
    for change in (lambda model: None, prepare):
        model = _build(cfg).train()
        change(model)
        _gradients(model, batch)
        if settings.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        results.append(_gradients(model, batch))
        peaks.append(torch.cuda.max_memory_allocated() / 2**20 if settings.on_gpu else 0.0)
    texts = [describe(model), _compare_relative(*results)]
    if settings.on_gpu:
        texts.append(f"peak of memory {peaks[0]:.0f} MiB, then {peaks[1]:.0f}")
    return _judge(peaks[1] < peaks[0] or not (lower_memory and settings.on_gpu), "; ".join(filter(None, texts)))


def _gradients(model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(model(batch).values()).backward()
    named = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: x.grad.cpu() for name, x in named.named_parameters() if x.grad is not None}


def _compare_relative(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    norm, difference = (
        torch.cat([x.flatten() for x in tensors]).norm().item()
        for tensors in (expected.values(), [x - expected[name] for name, x in found.items()])
    )
    relative = {"gradients": difference / norm}
    passed = expected.keys() == found.keys() and relative["gradients"] <= _GRADIENT_TOLERANCE
    return _judge(passed, _figures(relative, _GRADIENT_TOLERANCE))


def processes(settings: Settings, count: int) -> str:
    """Compare the gradients of as many processes with those of one that has the whole batch."""
    if settings.on_gpu and torch.cuda.device_count() < count:
        raise NotRun(f"{torch.cuda.device_count()} GPU")
    if torch.cuda.is_available() and not settings.on_gpu:
        raise NotRun("processes of this machine exchange gradients through its GPUs")
    cfg, path = settings.config(_SMALL, "MODEL.RESNETS.NORM", "FrozenBN"), settings.folder / "gradients.pth"
    # A loss per object is divided by the objects of all processes: equal numbers, and images without padding.
    batch = settings.batch(cfg, 128, images=1) * 2
    flags = {"num_gpus": count, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "start_timeout": 120}
    launch_processes(_save_gradients, argparse.Namespace(**flags, cfg=cfg, batch=batch, path=path))
    expected = _gradients(_build(cfg).train(), batch)
    return _compare_relative(expected, torch.load(path, weights_only=True))


def _save_gradients(args: argparse.Namespace) -> None:
    """Save the gradients of this process's share of the batch, averaged over the processes."""
    on_gpu = args.cfg.MODEL.DEVICE != "cpu"
    if not distributed.is_initialized():
        # The launcher connects several processes only.
        store = distributed.HashStore()
        distributed.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=0, world_size=1)
    devices = [torch.cuda.current_device()] if on_gpu else None
    model = DistributedDataParallel(_build(args.cfg).train(), device_ids=devices)
    share = len(args.batch) // comm.get_world_size()
    gradients = _gradients(model, args.batch[comm.get_rank() * share :][:share])
    if comm.is_main_process():
        torch.save(gradients, args.path)


class Check(NamedTuple):
    """A row of the report: what is checked, and the function that returns figures or raises an exception."""

    name: str
    run: Callable[..., str]
    arguments: Sequence[object] = ()


CHECKS = (
    Check("float32 equals the CPU, small model", equals_cpu, (_SMALL, 256)),
    Check("float32 equals the CPU, R50", equals_cpu, (_R50, 800)),
    Check("bfloat16 against float32, R50", half_precision, ("bfloat16",)),
    Check("float16 against float32, R50", half_precision, ("float16",)),
    Check("host waits in a training step", host_waits),
    Check("torch.compile, inference", compiled_inference),
    Check("torch.compile, training", compiled_training),
    Check("activation checkpoints", checkpoints),
    Check("gradients of one process with DDP", processes, (1,)),
    Check("gradients of two processes with DDP", processes, (2,)),
    Check("training in float32", short_training, ("float32",)),
    Check("training in bfloat16", short_training, ("bfloat16",)),
    Check("training in float16", short_training, ("float16",)),
)


class Result(NamedTuple):
    """Outcome of a check: "passed", "failed" or "not run", and what was measured, or why not."""

    name: str
    outcome: str
    figures: str


def run_check(check: Check, settings: Settings) -> Result:
    """Run a check without TF32; an exception of any kind is its result."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        return Result(check.name, "passed", check.run(settings, *check.arguments))
    except NotRun as e:
        return Result(check.name, "not run", str(e))
    except Failed as e:
        return Result(check.name, "failed", str(e))
    except Exception as e:
        lines = str(e).strip().splitlines() or [""]
        return Result(check.name, "failed", f"{type(e).__name__}: {lines[0]}")
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
