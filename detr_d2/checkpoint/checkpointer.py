"""Loading of DETR's weights in any format, and saving without leaving half a file."""

import logging
import os
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from detr_d2.checkpoint.adapter import NOTHING, Allowed, WeightsAdapter
from detr_d2.checkpoint.architecture import group_names
from detr_d2.checkpoint.class_head import HEAD, head_rows
from detr_d2.checkpoint.formats import (
    NativeWeights,
    split_training_only,
    to_native,
    without_mask_head,
)
from detr_d2.checkpoint.huggingface import read_config, read_labels
from detr_d2.checkpoint.key_maps import NATIVE
from detr_d2.checkpoint.reading import local_path, read_checkpoint
from detr_d2.config import TRAINING_ONLY
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

logger = logging.getLogger(__name__)


class DetrCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for :class:`~detr_d2.modeling.meta_arch.Detr`.

    Loads every format of :data:`~detr_d2.checkpoint.formats.FORMATS`, from a file or a URL, without executing what a
    file contains. Weights of a whole model must fit in every tensor; only a class head of another size may stay at its
    initialization. Weights of a backbone must fill the backbone. A run that is resumed must find exactly what it saved.

    What is saved as the model is a plain Detr: ``averaged``, where the trainer sets it, instead of the weights that are
    trained, without the training-only queries, which checkpoints of a run hold separately to resume from.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: list[str] | None = None,
        allow_new_head: bool = True,
        resize_queries: bool = False,
        classes_by_name: bool = False,
        frozen_weights: str = "",
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        """Prepare to load and save ``model``; ``save_to_disk`` and ``checkpointables`` are Detectron2's.

        Args:
            model: a Detr, or its data-parallel wrapper.
            save_dir: a local folder that exists.
            class_names: of the foreground classes, by row of the class head. Stored in the files that are saved, and
                compared with those in the files that are loaded.
            allow_new_head: False refuses a file whose class head has another size, and backbone weights: for
                evaluation, where an untrained head would only give bad results.
            resize_queries: load as many object queries as fit, where the file has more or fewer.
            classes_by_name: load the rows of the class head by the classes' names; those that the file does not hold
                stay at their initialization. COCO's heads need hold no names.
            frozen_weights: a file or URL whose box model replaces the model's after every :meth:`resume_or_load` of
                other weights, the class head included. A resumed run must have been trained over the same one.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.class_names = None if class_names is None else list(class_names)
        self._allowed = Allowed(allow_new_head, resize_queries, classes_by_name)
        self._source = ""
        self._frozen_weights = frozen_weights
        self.averaged: nn.Module | None = None

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model from a file or URL, and ``checkpointables`` (by default all) if the file is our own.

        Returns:
            What else our own file holds.

        Raises:
            UserError: there is no such file, it can't be read, or it does not fit the model.
        """
        if path:
            self._source = path
            local_path(urlparse(path)._replace(query="").geturl())
        elif not self._allowed.new_head:
            raise UserError("There are no weights to evaluate: set MODEL.WEIGHTS to a checkpoint.")
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load as Detectron2 does, then the frozen weights. A resumed run must find its own class head and queries."""
        resumed = resume and self.has_checkpoint()
        allowed = self._allowed
        self._allowed = NOTHING if resumed else allowed
        try:
            rest = super().resume_or_load(path, resume=resume)
        finally:
            self._allowed = allowed
        if self._frozen_weights:
            self._load_frozen_weights(resumed)
        return rest

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth in the save folder, then make it the last checkpoint. A file is complete or absent."""
        if not self.save_dir or not self.save_to_disk:
            return
        weights, training_only = split_training_only(self.model.state_dict())
        if self.averaged is not None:
            weights, _ = split_training_only(self.averaged.state_dict())
        data: dict[str, Any] = {"model": weights}
        can_resume = name != "model_best"
        if name == "model_final" and (self.averaged is not None or training_only):
            can_resume = False
            # A longer run is resumed from this one.
            self.save(f"model_{kwargs['iteration']:07d}", **kwargs)
        if can_resume:
            data.update({key: x.state_dict() for key, x in self.checkpointables.items()})
            if training_only:
                data["training_only"] = training_only
        if self.class_names is not None:
            data["class_names"] = self.class_names
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        with atomic_file(path) as file:
            torch.save(data, file)
        if can_resume:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_file(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        rows = head_rows(self.model.state_dict())
        weights = to_native(checkpoint, None if rows is None else rows - 1, self._source)
        class_names = weights.class_names
        if class_names is None and weights.format.splits_in_proj and (rows := head_rows(weights.tensors)):
            class_names = read_labels(read_config(filename), rows - 1)
        # The optimizer and the schedule in a foreign file belong to a foreign trainer.
        ours = weights.format is NATIVE and "model" in checkpoint
        return {**(checkpoint if ours else {"class_names": class_names}), "model": weights}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        weights: NativeWeights = checkpoint.pop("model")
        model = self.model.state_dict()
        plain, training_only = split_training_only(model)
        adapter = WeightsAdapter(plain, self._source, self._allowed)
        tensors = adapter.adapt(weights, checkpoint.get("class_names"), self.class_names)
        if self._allowed is NOTHING and training_only:
            tensors |= self._resumed_training_only(checkpoint.pop("training_only", {}), training_only)
        self.model.load_state_dict(tensors, strict=False)
        left_out = [f"left out: {group_names(weights.left_out)}"] if weights.left_out else []
        summary = f"loaded {len(tensors)} of {len(model)} tensors from {self._source} ({weights.format.name})"
        logger.info("; ".join([summary, *adapter.notes, *left_out]))
        if HEAD[0] in tensors and not self._allowed.classes_by_name:
            self._compare_class_names(checkpoint.get("class_names"))

    def _resumed_training_only(self, in_file: dict[str, Tensor], in_model: dict[str, Tensor]) -> dict[str, Tensor]:
        if {name: x.shape for name, x in in_file.items()} != {name: x.shape for name, x in in_model.items()}:
            raise UserError(
                f"{self._source} was saved by a run with other training-only parts: resume it with its own "
                f"{', '.join(TRAINING_ONLY)}, or start a new run from its weights (MODEL.WEIGHTS, without --resume)."
            )
        return in_file

    def _load_frozen_weights(self, resumed: bool) -> None:
        """Load the box model in the file of frozen weights, which fits in every tensor and is that of a resumed run."""
        self._source = f"MODEL.DETR.FROZEN_WEIGHTS {self._frozen_weights}"
        checkpoint = self._load_file(local_path(self._frozen_weights))
        weights: NativeWeights = checkpoint["model"]
        class_names = checkpoint.get("class_names")
        model = without_mask_head(self.model.state_dict())
        tensors = WeightsAdapter(model, self._source, NOTHING).adapt(weights, class_names, self.class_names)
        logger.info(f"loaded {len(tensors)} tensors, the box model, from {self._source} ({weights.format.name})")
        self._compare_class_names(class_names)
        differing = [name for name, x in tensors.items() if not torch.equal(x.to(model[name]), model[name])]
        if resumed and differing:
            raise UserError(
                f"The run in {self.save_dir} was trained over another box model than that of {self._source}: "
                f"{group_names(differing)} differ. Set MODEL.DETR.FROZEN_WEIGHTS as in that run, or another OUTPUT_DIR."
            )
        self.model.load_state_dict(tensors, strict=False)

    def _compare_class_names(self, names: list[str] | None) -> None:
        ours = self.class_names
        if names is None or ours is None or len(names) != len(ours):
            return
        pairs = enumerate(zip(names, ours, strict=True))
        differing = [f"{i}: {a!r} in the file, {b!r} here" for i, (a, b) in pairs if a != b]
        if differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            logger.warning(
                f"{self._source} was trained with other class names: {'; '.join(differing[:5])}{more}. Its class head "
                "was loaded, because it has as many rows; if the classes are others, it has to be trained again."
            )
