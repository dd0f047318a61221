"""The tensors of a file that a model is loaded with, and whether they fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detr_d2.checkpoint.architecture import compare, describe_family, explain, infer_architecture
from detr_d2.checkpoint.class_head import HEAD, coco_names, head_rows, select_classes
from detr_d2.checkpoint.formats import NativeWeights, is_of_mask_head
from detr_d2.checkpoint.key_maps import BACKBONE
from detr_d2.utils.errors import UserError

QUERIES = "detr.query_embed.weight"


@dataclass(frozen=True)
class Allowed:
    """What may differ between a file and the model."""

    new_head: bool = True
    """Modules may stay as built: a class head of another size, the mask head, all except the backbone, new classes
    and queries."""
    resize_queries: bool = False
    classes_by_name: bool = False


NOTHING = Allowed(new_head=False)

# What differs where a box model is loaded from a file with a mask head, or the other way round.
_MASK_KEYS = ("MODEL.MASK_ON", "MODEL.RESNETS.OUT_FEATURES")


class WeightsAdapter:
    """Adapter of the weights of one file to one model.

    Its methods return the tensors that remain, or raise a UserError; :attr:`notes` describe what was done.
    """

    def __init__(self, model: dict[str, Tensor], source: str, allowed: Allowed):
        """Prepare for one file and one model.

        Args:
            model: the model's state dict.
            source: the file, for messages.
        """
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
        if weights.format.backbone_only:
            tensors = self._adapt_backbone(weights)
        else:
            self._check_family(weights.tensors)
            tensors = self._adapt_queries(self._adapt_masks(weights.tensors))
            if self.allowed.classes_by_name and head_rows(tensors) is not None:
                tensors = self._select_classes(tensors, names_in_file, class_names)
            else:
                tensors = self._adapt_head(tensors)
        if differences := compare(tensors, self.expected):
            ignore = _MASK_KEYS + (("MODEL.DETR.NUM_CLASSES",) if self.allowed.new_head else ())
            only_queries = differences.reshaped == [QUERIES] and not self.allowed.resize_queries
            raise UserError(
                f"{self.source} ({weights.format.name}) does not fit the model that the config builds:\n"
                f"{explain(differences, weights.tensors, self.model, ignore=ignore)}\n"
                "Set the config keys as in the file, or set MODEL.WEIGHTS to weights of this model."
                + (" MODEL.DETR.LOAD.QUERIES resize loads as many queries as fit." if only_queries else "")
            )
        return {name: x for name, x in tensors.items() if name in self.model}

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
        in_file, in_model = (any(is_of_mask_head(name) for name in x) for x in (tensors, self.model))
        if in_file and not in_model:
            self.notes.append("the file's mask head is left out")
            return {name: x for name, x in tensors.items() if not is_of_mask_head(name)}
        if in_model and not in_file:
            if not self.allowed.new_head:
                raise UserError(
                    f"{self.source} holds no mask head; the model has one (MODEL.MASK_ON True). A new one can be "
                    "trained, not evaluated or resumed: set MODEL.MASK_ON False, or MODEL.WEIGHTS to a checkpoint "
                    "with masks."
                )
            self.notes.append("the mask head stays at its initialization, the file holds none")
            self.expected = {name: x for name, x in self.expected.items() if not is_of_mask_head(name)}
        return tensors

    def _check_family(self, tensors: dict[str, Tensor]) -> None:
        in_file, in_model = infer_architecture(tensors), infer_architecture(self.model)
        file_family, model_family = describe_family(in_file), describe_family(in_model)
        if not (in_file and in_model) or file_family == model_family:
            return
        keys = ("MODEL.DETR.TRANSFORMER", "MODEL.DETR.SMCA.DYNAMIC_SCALE")
        settings = " and ".join(f"{key} {in_file[key]}" for key in keys if key in in_file)
        builds = f"{in_model[keys[0]]}" + (f" ({model_family})" if keys[1] in in_model else "")
        articles = ["an" if keys[1] in x else "a plain" for x in (in_file, in_model)]
        raise UserError(
            f"{self.source} is {articles[0]} {file_family} checkpoint; the config builds {builds}. Set "
            f"{settings}, or set MODEL.WEIGHTS to a checkpoint of {articles[1]} {model_family}."
        )

    def _adapt_queries(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the tensors as many object queries as the model has: copy those that fit, keep the rest as built."""
        if not self.allowed.resize_queries or QUERIES not in tensors:
            return tensors
        in_file, in_model = tensors[QUERIES], self.model[QUERIES]
        file_rows, model_rows = len(in_file), len(in_model)
        if file_rows == model_rows or in_file.shape[1:] != in_model.shape[1:]:
            return tensors
        if file_rows > model_rows:
            note = f"{model_rows} of {file_rows} rows loaded, the model has no more than {model_rows}"
        elif self.allowed.new_head:
            note = f"{file_rows} of {model_rows} rows loaded"
        else:
            raise UserError(
                f"{self.source} holds {file_rows} object queries; the model has {model_rows} "
                "(MODEL.DETR.NUM_OBJECT_QUERIES). New ones can be trained, not evaluated: set "
                f"MODEL.DETR.NUM_OBJECT_QUERIES {file_rows} or less."
            )
        self.notes.append(f"query_embed: {note}")
        count = min(file_rows, model_rows)
        queries = in_model.detach().clone()
        queries[:count] = in_file[:count]
        return {**tensors, QUERIES: queries}

    def _select_classes(
        self,
        tensors: dict[str, Tensor],
        names_in_file: Sequence[str | None] | None,
        class_names: Sequence[str] | None,
    ) -> dict[str, Tensor]:
        num_in_file, num_classes = head_rows(tensors) - 1, head_rows(self.model) - 1
        if names_in_file is None or len(names_in_file) != num_in_file:
            names_in_file = coco_names(num_in_file + 1)
            if names_in_file is None:
                raise UserError(
                    f"MODEL.DETR.LOAD.CLASSES by_name: {self.source} does not name its {num_in_file} classes, which "
                    "are not COCO's. Set MODEL.DETR.LOAD.CLASSES by_row."
                )
            self.notes.append("the file holds no class names: its rows are taken for COCO's")
        if class_names is None or len(class_names) != num_classes:
            known = "there are no names" if class_names is None else f"there are {len(class_names)} names"
            raise UserError(
                f"MODEL.DETR.LOAD.CLASSES by_name: {known} for the model's {num_classes} classes. Set "
                "thing_classes in the metadata of the dataset, or MODEL.DETR.LOAD.CLASSES by_row."
            )
        selected, match = select_classes(tensors, self.model, names_in_file, class_names)
        if match.new and not self.allowed.new_head:
            raise UserError(
                f"{self.source} does not hold the classes {', '.join(match.new)}. New classes can be trained, not "
                "evaluated: set MODEL.WEIGHTS to a checkpoint that has them."
            )
        self.notes.append(str(match))
        return selected

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


def _stage(name: str) -> str:
    return name.removeprefix(BACKBONE).split(".")[0]
