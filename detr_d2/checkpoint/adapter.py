"""The tensors of a file that a model is loaded with, and whether they fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from detr_d2.checkpoint.architecture import compare, describe_family, explain, infer_architecture
from detr_d2.checkpoint.class_head import HEAD, coco_names, head_rows
from detr_d2.checkpoint.formats import NativeWeights, has_mask_head, without_mask_head
from detr_d2.checkpoint.key_maps import BACKBONE
from detr_d2.utils.errors import UserError

QUERIES = "detr.query_embed.weight"
_FAMILY_KEYS = ("MODEL.DETR.TRANSFORMER", "MODEL.DETR.SMCA.DYNAMIC_SCALE")
# What differs where a box model is loaded from a file with a mask head, or the other way round.
_MASK_KEYS = ("MODEL.MASK_ON", "MODEL.RESNETS.OUT_FEATURES")


@dataclass(frozen=True)
class Allowed:
    """What may differ between a file and the model."""

    new_head: bool = True
    """Modules may stay as built: a class head of another size, the mask head, all except the backbone, new classes
    and queries."""
    resize_queries: bool = False
    classes_by_name: bool = False


NOTHING = Allowed(new_head=False)


class WeightsAdapter:
    """Adapter of the weights of one file to one model; :attr:`notes` describe what was done."""

    def __init__(self, model: dict[str, Tensor], source: str, allowed: Allowed):
        """Prepare for a model's state dict and a file, whose name is for messages."""
        self.model = model
        self.expected = model
        self.source = source
        self.allowed = allowed
        self.notes: list[str] = []

    def adapt(
        self, weights: NativeWeights, names_in_file: Sequence[str | None] | None, class_names: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """Return the tensors to load.

        Args:
            names_in_file: of the classes, in the order of the head's rows in the file; None if the file has none.
            class_names: of the model's classes.

        Raises:
            UserError: the weights do not fit, and what differs may not differ.
        """
        weights = replace(weights, tensors=self._adapt_channels(weights.tensors))
        if weights.format.backbone_only:
            tensors = self._adapt_backbone(weights)
        else:
            self._check_family(weights.tensors)
            tensors = self._adapt_queries(self._adapt_masks(weights.tensors))
            if self.allowed.classes_by_name and head_rows(tensors) is not None:
                tensors = self._select_classes(tensors, names_in_file, class_names)
            else:
                tensors = self._adapt_head(tensors)
        differences = compare(tensors, self.expected)
        if any(differences):
            ignore = _MASK_KEYS + (("MODEL.DETR.NUM_CLASSES",) if self.allowed.new_head else ())
            only_queries = differences.reshaped == [QUERIES] and not self.allowed.resize_queries
            raise UserError(
                f"{self.source} ({weights.format.name}) does not fit the model that the config builds:\n"
                f"{explain(differences, weights.tensors, self.model, ignore=ignore)}\n"
                "Set the config keys as in the file, or set MODEL.WEIGHTS to weights of this model."
                + (" MODEL.DETR.LOAD.QUERIES resize loads as many queries as fit." if only_queries else "")
            )
        return {name: x for name, x in tensors.items() if name in self.model}

    def _adapt_channels(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the first convolution of a backbone for RGB to the model's number of channels."""
        adapted = {}
        for name, x in tensors.items():
            expected = self.model.get(name)
            if not name.startswith(BACKBONE) or x.dim() != 4 or x.shape[1] != 3 or expected is None:
                continue
            channels = expected.shape[1]
            if channels == 3 or expected.shape != (x.shape[0], channels, *x.shape[2:]):
                continue
            if not self.allowed.new_head:
                raise UserError(
                    f"{self.source} is for images of 3 channels; the model has {channels} (INPUT.CHANNELS). It can be "
                    "adapted to train, not to evaluate or resume: set INPUT.CHANNELS 3, or MODEL.WEIGHTS to a "
                    f"checkpoint for {channels}."
                )
            adapted[name] = adapt_channels(x, channels)
            self.notes.append(f"{name} adapted from 3 to {channels} channels")
        return tensors | adapted

    def _adapt_backbone(self, weights: NativeWeights) -> dict[str, Tensor]:
        if not self.allowed.new_head:
            raise UserError(
                f"{self.source} holds the weights of a backbone ({weights.format.name}): a whole model is "
                "needed to evaluate or resume. Set MODEL.WEIGHTS to a checkpoint of one."
            )
        self.expected = {name: x for name, x in self.model.items() if name.startswith(BACKBONE)}
        self.notes.append("the rest stays at its initialization")
        # Stages that the model does not build may be in the file.
        stages = {_stage(name) for name in self.expected}
        return {name: x for name, x in weights.tensors.items() if _stage(name) in stages}

    def _adapt_masks(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out a mask head that the model lacks; let one that the file lacks stay at its initialization."""
        in_file, in_model = has_mask_head(tensors), has_mask_head(self.model)
        if in_file and not in_model:
            self.notes.append("the file's mask head is left out")
            return without_mask_head(tensors)
        if in_model and not in_file:
            if not self.allowed.new_head:
                raise UserError(
                    f"{self.source} holds no mask head; the model has one (MODEL.MASK_ON True). A new one can be "
                    "trained, not evaluated or resumed: set MODEL.MASK_ON False, or MODEL.WEIGHTS to a checkpoint "
                    "with masks."
                )
            self.notes.append("the mask head stays at its initialization, the file holds none")
            self.expected = without_mask_head(self.expected)
        return tensors

    def _check_family(self, tensors: dict[str, Tensor]) -> None:
        in_file, in_model = infer_architecture(tensors), infer_architecture(self.model)
        file_family, model_family = describe_family(in_file), describe_family(in_model)
        if not (in_file and in_model) or file_family == model_family:
            return
        transformer, scale = _FAMILY_KEYS
        settings = " and ".join(f"{key} {in_file[key]}" for key in _FAMILY_KEYS if key in in_file)
        builds = f"{in_model[transformer]}" + (f" ({model_family})" if scale in in_model else "")
        file_article, model_article = ("an" if scale in x else "a plain" for x in (in_file, in_model))
        raise UserError(
            f"{self.source} is {file_article} {file_family} checkpoint; the config builds {builds}. Set "
            f"{settings}, or set MODEL.WEIGHTS to a checkpoint of {model_article} {model_family}."
        )

    def _adapt_queries(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the tensors as many object queries as the model has: copy those that fit, keep the rest as built."""
        if not self.allowed.resize_queries or QUERIES not in tensors:
            return tensors
        in_file, in_model = tensors[QUERIES], self.model[QUERIES]
        file_rows, model_rows = len(in_file), len(in_model)
        if file_rows == model_rows or in_file.shape[1:] != in_model.shape[1:]:
            return tensors
        if file_rows < model_rows and not self.allowed.new_head:
            raise UserError(
                f"{self.source} holds {file_rows} object queries; the model has {model_rows} "
                "(MODEL.DETR.NUM_OBJECT_QUERIES). New ones can be trained, not evaluated: set "
                f"MODEL.DETR.NUM_OBJECT_QUERIES {file_rows} or less."
            )
        count = min(file_rows, model_rows)
        limit = f", the model has no more than {model_rows}" if file_rows > model_rows else ""
        self.notes.append(f"query_embed: {count} of {max(file_rows, model_rows)} rows loaded{limit}")
        queries = in_model.detach().clone()
        queries[:count] = in_file[:count]
        return {**tensors, QUERIES: queries}

    def _select_classes(
        self, tensors: dict[str, Tensor], names_in_file: Sequence[str | None] | None, class_names: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """Bring the head's rows to the model's order by class names, regardless of case. New classes stay as built."""
        names_in_file = self._check_names_in_file(head_rows(tensors) - 1, names_in_file)
        num_classes = head_rows(self.model) - 1
        if class_names is None or len(class_names) != num_classes:
            known = "there are no names" if class_names is None else f"there are {len(class_names)} names"
            raise UserError(
                f"MODEL.DETR.LOAD.CLASSES by_name: {known} for the model's {num_classes} classes. Set "
                "thing_classes in the metadata of the dataset, or MODEL.DETR.LOAD.CLASSES by_row."
            )
        rows_in_file: dict[str, int] = {}
        for row, name in enumerate(names_in_file):
            if name is not None:
                rows_in_file.setdefault(_normalize(name), row)
        sources = [rows_in_file.get(_normalize(name)) for name in class_names]
        new = [name for name, source in zip(class_names, sources, strict=True) if source is None]
        if new and not self.allowed.new_head:
            raise UserError(
                f"{self.source} does not hold the classes {', '.join(new)}. New classes can be trained, not "
                "evaluated: set MODEL.WEIGHTS to a checkpoint that has them."
            )
        found = [name for name in class_names if name not in new]
        self.notes.append(
            f"class_embed by name: {len(found)} of {num_classes} classes loaded"
            + (f" ({_shorten(found)})" if found else "")
            + (f", new: {_shorten(new)}" if new else "")
        )
        rows = [row for row, source in enumerate(sources) if source is not None]
        selected = dict(tensors)
        for name in HEAD:
            selected[name] = self.model[name].detach().clone()
            # No-object is the last row of both.
            selected[name][[*rows, -1]] = tensors[name][[*(sources[i] for i in rows), -1]].to(selected[name])
        return selected

    def _check_names_in_file(self, num_classes: int, names: Sequence[str | None] | None) -> Sequence[str | None]:
        if names is not None and len(names) == num_classes:
            return names
        names = coco_names(num_classes + 1)
        if names is None:
            raise UserError(
                f"MODEL.DETR.LOAD.CLASSES by_name: {self.source} does not name its {num_classes} classes, which "
                "are not COCO's. Set MODEL.DETR.LOAD.CLASSES by_row."
            )
        self.notes.append("the file holds no class names: its rows are assumed to be COCO's")
        return names

    def _adapt_head(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, model_rows = head_rows(tensors), head_rows(self.model)
        if rows == model_rows:
            return tensors
        if not self.allowed.new_head:
            in_file = "no class head" if rows is None else f"a class head of {rows} rows ({rows - 1} classes)"
            raise UserError(
                f"{self.source} holds {in_file}; the model has {model_rows} rows (MODEL.DETR.NUM_CLASSES "
                f"{model_rows - 1}, and no-object). A new head can be trained, not evaluated or resumed: set "
                "MODEL.DETR.NUM_CLASSES as in the file, or MODEL.WEIGHTS to a checkpoint with this head."
            )
        change = "the file holds none" if rows is None else f"{rows} -> {model_rows} rows"
        self.notes.append(f"class_embed re-initialized, {change}")
        self.expected = {name: x for name, x in self.expected.items() if name not in HEAD}
        return {name: x for name, x in tensors.items() if name not in HEAD}


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the (O, 3, h, w) weight of a convolution for another number of channels, as timm does.

    For one channel, the sum: a gray image has the features that it has as RGB, if normalized alike. Otherwise the three
    channels in turn, times 3 / ``channels``, which keeps the size of the features.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % 3 for i in range(channels)]] * (3 / channels)


def _stage(name: str) -> str:
    return name.removeprefix(BACKBONE).split(".")[0]


def _normalize(name: str) -> str:
    return name.strip().casefold()


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
