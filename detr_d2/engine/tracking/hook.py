"""Hook that keeps the trackers of a run: it starts, resumes and ends them, and gives them images and checkpoints."""

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from detr_d2.config import choice
from detr_d2.data.bands import to_display
from detr_d2.data.images import read_image
from detr_d2.engine.tracking.backends import TRACKERS
from detr_d2.engine.tracking.tracker import RunInfo, Tracker
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import read_json, write_json
from detr_d2.visualization import draw_instances

logger = logging.getLogger(__name__)

# What of the trackers a resumed run needs, in the output folder.
_STATE = "trackers.json"
_CHECKPOINTS = ("model_final.pth", "model_best.pth")
# Maximum side of an image of predictions, in pixels.
_MAX_SIDE = 800


class Tracking(hooks.PeriodicWriter):
    """Trackers of a run, in the first process; the block ``with tracking`` ends them, also after an error.

    Args:
        trackers: names in :data:`TRACKERS`.
        run: the run to show.
        num_images: number of images of predictions per evaluation.
        artifacts: True to send the final and the best checkpoint.
        period: number of iterations between scalars.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """

    def __init__(
        self, trackers: Sequence[str], run: RunInfo, *, num_images: int = 0, artifacts: bool = False, period: int = 20
    ):
        classes = {name: choice(TRACKERS, "LOGGING.TRACKERS", name) for name in trackers}
        for name, tracker in classes.items():
            _check_installed(name, tracker.requires)
        if not comm.is_main_process():
            classes = {}
        self.trackers: dict[str, Tracker] = {name: tracker(run) for name, tracker in classes.items()}
        self.output_dir = Path(run.output_dir)
        self.num_images = num_images
        self.artifacts = artifacts
        super().__init__(list(self.trackers.values()), period)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Tracking":
        """Return the trackers of ``cfg.LOGGING``."""
        logging_, config = cfg.LOGGING, yaml.safe_load(cfg.dump())
        run = make_run(logging_.PROJECT, logging_.RUN, cfg.OUTPUT_DIR, config)
        return cls(logging_.TRACKERS, run, num_images=logging_.IMAGES, artifacts=logging_.ARTIFACTS)

    @classmethod
    def from_lazy_config(cls, cfg: DictConfig) -> "Tracking":
        """Return the trackers of ``cfg.train.logging``; TensorBoard if there is no such node."""
        given = cfg.train.get("logging") or {}
        config = OmegaConf.to_container(cfg.train, resolve=True)
        run = make_run(given.get("project", ""), given.get("run", ""), cfg.train.output_dir, {"train": config})
        options = {"num_images": given.get("images", 0), "artifacts": given.get("artifacts", False)}
        return cls(given.get("trackers", ("tensorboard",)), run, **options, period=cfg.train.log_period)

    def before_train(self) -> None:
        """Start the trackers; in a resumed run, continue their runs."""
        path = self.output_dir / _STATE
        state = read_json(path) if self.trainer.start_iter and self.trackers and path.exists() else {}
        for name, tracker in self.trackers.items():
            known = state.get(name, {})
            # The hooks of iteration start_iter - 1 are repeated when a run is resumed: it is still to be sent.
            tracker.run_id, tracker.step = known.get("run"), known.get("step", self.trainer.start_iter - 2)
            tracker.start()
        self._save_state()

    def after_step(self) -> None:
        """Write the scalars and images, periodically."""
        super().after_step()
        if (self.trainer.iter + 1) % self._period == 0:
            self._finish_writing()

    def after_train(self) -> None:
        """Write what came with the last evaluation."""
        for tracker in self.trackers.values():
            tracker.write()
        self._finish_writing()

    def add_predictions(self, model: nn.Module, loader: DataLoader, class_names: Sequence[str] | None) -> None:
        """Draw the detections in the first images of a test loader's dataset, for the trackers."""
        if not (self.trackers and self.num_images):
            return
        was_training = model.training
        try:
            with torch.no_grad():
                model.eval()
                for i in range(min(self.num_images, len(loader.dataset))):
                    record = loader.dataset[i]
                    channels = record["image"].shape[0]
                    pixels = to_display(read_image(record["file_name"], "RGB", channels=channels))
                    (result,) = model([record])
                    scale = min(1.0, _MAX_SIDE / max(pixels.shape[:2]))
                    drawn = draw_instances(pixels, result["instances"], class_names, scale=scale)
                    name = f"predictions/{Path(record['file_name']).stem}"
                    self.trainer.storage.put_image(name, drawn.transpose(2, 0, 1))
        # Images for the trackers never stop a training.
        except Exception as e:
            self.num_images = 0
            logger.warning(f"No more images of predictions are drawn, after {type(e).__name__}: {e}")
        finally:
            model.train(was_training)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for tracker in self.trackers.values():
            if self.artifacts and error is None:
                for path in (self.output_dir / x for x in _CHECKPOINTS):
                    if path.exists():
                        tracker.save_file(str(path))
            tracker.close(failed=error is not None)

    def _finish_writing(self) -> None:
        if self.trackers:
            self.trainer.storage.clear_images()
            self.trainer.storage.clear_histograms()
            self._save_state()

    def _save_state(self) -> None:
        if self.trackers:
            state = {name: {"run": x.run_id, "step": x.step} for name, x in self.trackers.items()}
            write_json(self.output_dir / _STATE, state, indent=1)


def make_run(project: str, name: str, output_dir: str, config: dict[str, Any]) -> RunInfo:
    """Return the description of a run, which by default has the name of its folder."""
    return RunInfo(project or "detr_d2", name or os.path.basename(os.path.abspath(output_dir)), output_dir, config)


def _check_installed(name: str, package: str) -> None:
    try:
        importlib.import_module(package or "detr_d2")
    except ImportError as e:
        message = f"LOGGING.TRACKERS {name} needs a package that can't be imported ({e})"
        raise UserError(f"{message}: pip install 'detr_d2[{package}]'.") from e
