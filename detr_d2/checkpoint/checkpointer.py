"""Loading whatever DETR's weights come in, and saving without leaving half a file."""

import logging
import os
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from detr_d2.checkpoint.class_head import HEAD, head_rows
from detr_d2.checkpoint.comparison import compare, explain, group_names
from detr_d2.checkpoint.formats import NativeWeights, to_native
from detr_d2.checkpoint.key_maps.native import NATIVE
from detr_d2.checkpoint.key_maps.resnet import BACKBONE
from detr_d2.checkpoint.reading import local_path, read_checkpoint
from detr_d2.checkpoint.writing import atomic_file
from detr_d2.errors import UserError

logger = logging.getLogger(__name__)


class DetrCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for :class:`~detr_d2.meta_arch.Detr`.

    Loads every format of :data:`~detr_d2.checkpoint.formats.FORMATS`, from a file or a URL, without running what a
    file holds. Weights of a whole model must fit in every tensor; only a class head of another size may stay at its
    initialisation. Weights of a backbone must fill the backbone. Anything else is a UserError.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: list[str] | None = None,
        allow_new_head: bool = True,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        """
        Args:
            model: a Detr, or its data-parallel wrapper.
            save_dir: a local folder that exists.
            class_names: of the foreground classes, in the order of the class head's rows. Stored in the files that
                are saved, and compared with those in the files that are loaded.
            allow_new_head: False refuses a file whose class head has another size, and backbone weights: for
                evaluation, where an untrained head would only give bad results.
            save_to_disk, checkpointables: as in Detectron2.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.class_names = None if class_names is None else list(class_names)
        self.allow_new_head = allow_new_head
        self._source = ""

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
        elif not self.allow_new_head:
            raise UserError("There are no weights to evaluate: set MODEL.WEIGHTS to a checkpoint.")
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in Detectron2. A resumed run must find its own class head."""
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=resume)
        allow_new_head, self.allow_new_head = self.allow_new_head, False
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.allow_new_head = allow_new_head

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth in the save folder, then make it the last checkpoint. A file is complete or absent."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: x.state_dict() for key, x in self.checkpointables.items()})
        if self.class_names is not None:
            data["class_names"] = self.class_names
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        with atomic_file(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_file(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        rows = head_rows(self.model.state_dict())
        weights = to_native(checkpoint, None if rows is None else rows - 1, self._source)
        # The optimizer and the schedule in a foreign file belong to a foreign trainer.
        ours = weights.format is NATIVE and "model" in checkpoint
        return {**(checkpoint if ours else {"class_names": weights.class_names}), "model": weights}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        weights: NativeWeights = checkpoint.pop("model")
        model = self.model.state_dict()
        if weights.format.backbone_only:
            tensors, wanted = _backbone(weights.tensors, model)
            notes = ["the rest stays at its initialisation"]
            if not self.allow_new_head:
                raise UserError(
                    f"{self._source} holds the weights of a backbone ({weights.format.name}): a whole model is "
                    "needed to evaluate or resume. Set MODEL.WEIGHTS to a checkpoint of one."
                )
        else:
            tensors, wanted, notes = self._fit_head(weights.tensors, model)
        if differences := compare(tensors, wanted):
            ignore = ("MODEL.DETR.NUM_CLASSES",) if self.allow_new_head else ()
            raise UserError(
                f"{self._source} ({weights.format.name}) does not fit the model that the config builds:\n"
                f"{explain(differences, weights.tensors, model, ignore=ignore)}\n"
                "Set the config keys as in the file, or set MODEL.WEIGHTS to weights of this model."
            )
        tensors = {name: x for name, x in tensors.items() if name in model}
        self.model.load_state_dict(tensors, strict=False)
        if weights.left_out:
            notes.append(f"left out: {group_names(weights.left_out)}")
        summary = f"loaded {len(tensors)} of {len(model)} tensors from {self._source} ({weights.format.name})"
        logger.info("; ".join([summary, *notes]))
        if HEAD[0] in tensors:
            self._compare_class_names(checkpoint.get("class_names"))

    def _fit_head(
        self, tensors: dict[str, Tensor], model: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
        """The tensors to load, those that must be loaded, and what to say of the head."""
        rows, model_rows = head_rows(tensors), head_rows(model)
        if rows == model_rows:
            return tensors, model, []
        if not self.allow_new_head:
            held = "no class head" if rows is None else f"a class head of {rows} rows ({rows - 1} classes)"
            raise UserError(
                f"{self._source} holds {held}; the model has {model_rows} rows (MODEL.DETR.NUM_CLASSES "
                f"{model_rows - 1}, and no-object). A new head can be trained, not evaluated or resumed: set "
                "MODEL.DETR.NUM_CLASSES as in the file, or MODEL.WEIGHTS to a checkpoint with this head."
            )
        tensors, wanted = ({k: x for k, x in d.items() if k not in HEAD} for d in (tensors, model))
        held = "the file holds none" if rows is None else f"{rows} -> {model_rows} rows"
        return tensors, wanted, [f"class_embed re-initialised, {held}"]

    def _compare_class_names(self, names: list[str] | None) -> None:
        ours = self.class_names
        if names is None or ours is None or len(names) != len(ours) or list(names) == ours:
            return
        differing = [
            f"{i}: {a!r} in the file, {b!r} here" for i, (a, b) in enumerate(zip(names, ours, strict=True)) if a != b
        ]
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        logger.warning(
            f"{self._source} was trained with other class names: {'; '.join(differing[:5])}{more}. Its class head was "
            "loaded, because it has as many rows; if the classes are others, it has to be trained anew."
        )


def _backbone(tensors: dict[str, Tensor], model: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone tensors to load, without stages that the model does not build, and those of the model."""
    wanted = {name: x for name, x in model.items() if name.startswith(BACKBONE)}
    stages = {name.removeprefix(BACKBONE).split(".")[0] for name in wanted}
    tensors = {k: x for k, x in tensors.items() if k.removeprefix(BACKBONE).split(".")[0] in stages}
    return tensors, wanted
