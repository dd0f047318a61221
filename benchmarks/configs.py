"""Benchmark of configs: our own models beside each other, in a prediction or a training step."""

from dataclasses import dataclass

import torch
from detectron2.modeling import build_model

from benchmarks import models, ours
from benchmarks.comparison import Case, Implementation
from benchmarks.measuring import Runner
from detr_d2.config.checks import amp_dtype


@dataclass(frozen=True, kw_only=True)
class Configs(Case):
    """A batch of images of one size, by the model of each config with its own random weights."""

    work: str
    """"inference" or "training"."""
    size: tuple[int, int] = (800, 1066)
    objects: int = 7
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"configs: {self.work}, {self.size[0]} x {self.size[1]}, batch {self.batch}"

    def build(self, name: str) -> Implementation:
        cfg = ours.make_config(name, self.options, self.device)
        torch.manual_seed(0)
        model = build_model(cfg)
        classes, masks = cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.MASK_ON
        batch = models.random_batch([self.size] * self.batch, classes, self.objects, masks=masks)
        if self.work == "training":
            dtype = amp_dtype(cfg)
            precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
            work = ours.make_training_step(cfg, model, batch, precision)
        else:
            model.eval()
            work = torch.inference_mode()(lambda: model(batch))
        # Different models have different results.
        return Implementation(Runner(work), outputs=dict, tolerance=0.0, keeps_freed_memory=True)
