"""Which of a file's tensors a model gets, and whether they fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detr_d2.checkpoint.architecture import describe_family, infer_architecture
from detr_d2.checkpoint.class_head import HEAD, coco_names, head_rows
from detr_d2.checkpoint.comparison import compare, explain
from detr_d2.checkpoint.formats import NativeWeights, is_of_masks
from detr_d2.checkpoint.key_maps.resnet import BACKBONE
from detr_d2.checkpoint.surgery import QUERIES, resize_queries, select_classes
from detr_d2.utils.errors import UserError


@dataclass(frozen=True)
class Allowed:
    """What may differ between a file and the model."""

    new_head: bool = True
    """Parts may stay as built: a class head of another size, all but the backbone, what surgery leaves open."""
    resize_queries: bool = False
    classes_by_name: bool = False


NOTHING = Allowed(new_head=False)

# What differs where a box model is loaded from a file with a mask head, or the other way round.
_OF_MASKS = ("MODEL.MASK_ON", "MODEL.RESNETS.OUT_FEATURES")


class Fitter:
    """Brings the weights of one file to one model.

    Every method returns what it leaves of the tensors, or raises a UserError; :attr:`notes` say what it did.
    """

    def __init__(self, model: dict[str, Tensor], source: str, allowed: Allowed):
        """
        Args:
            model: the model's state dict.
            source: what messages call the file.
        """
        self.model = model
        self.wanted = model
        self.source = source
        self.allowed = allowed
        self.notes: list[str] = []

    def fit(
        self, weights: NativeWeights, held_names: Sequence[str | None] | None, class_names: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """The tensors to load.

        Args:
            held_names: of the classes in the file, in the order of its head's rows; None if it does not tell.
            class_names: of the model's classes.

        Raises:
            UserError: the weights do not fit, and what differs may not differ.
        """
        if weights.format.backbone_only:
            tensors = self._fit_backbone(weights)
        else:
            self._check_family(weights.tensors)
            tensors = self._fit_queries(self._fit_masks(weights.tensors))
            if self.allowed.classes_by_name and head_rows(tensors) is not None:
                tensors = self._select_classes(tensors, held_names, class_names)
            else:
                tensors = self._fit_head(tensors)
        if differences := compare(tensors, self.wanted):
            ignore = _OF_MASKS + (("MODEL.DETR.NUM_CLASSES",) if self.allowed.new_head else ())
            raise UserError(
                f"{self.source} ({weights.format.name}) does not fit the model that the config builds:\n"
                f"{explain(differences, weights.tensors, self.model, ignore=ignore)}\n"
                "Set the config keys as in the file, or set MODEL.WEIGHTS to weights of this model."
                + self._query_hint(differences.reshaped)
            )
        return {name: x for name, x in tensors.items() if name in self.model}

    def _fit_backbone(self, weights: NativeWeights) -> dict[str, Tensor]:
        if not self.allowed.new_head:
            raise UserError(
                f"{self.source} holds the weights of a backbone ({weights.format.name}): a whole model is "
                "needed to evaluate or resume. Set MODEL.WEIGHTS to a checkpoint of one."
            )
        self.wanted = {name: x for name, x in self.model.items() if name.startswith(BACKBONE)}
        self.notes.append("the rest stays at its initialisation")
        # Stages that the model does not build are not missed.
        stages = {_stage(name) for name in self.wanted}
        return {name: x for name, x in weights.tensors.items() if _stage(name) in stages}

    def _fit_masks(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A box model takes the box model in the file; a mask head that the file does not hold may start anew."""
        held, wanted = ([name for name in x if is_of_masks(name)] for x in (tensors, self.model))
        if held and not wanted:
            self.notes.append("the file's mask head is left out")
            return {name: x for name, x in tensors.items() if not is_of_masks(name)}
        if wanted and not held:
            if not self.allowed.new_head:
                raise UserError(
                    f"{self.source} holds no mask head; the model has one (MODEL.MASK_ON True). A new one can be "
                    "trained, not evaluated or resumed: set MODEL.MASK_ON False, or MODEL.WEIGHTS to a checkpoint "
                    "with masks."
                )
            self.notes.append("the mask head stays at its initialisation, the file holds none")
            self.wanted = {name: x for name, x in self.wanted.items() if not is_of_masks(name)}
        return tensors

    def _check_family(self, tensors: dict[str, Tensor]) -> None:
        held, built = infer_architecture(tensors), infer_architecture(self.model)
        if not (held and built) or describe_family(held) == describe_family(built):
            return
        keys = ("MODEL.DETR.TRANSFORMER", "MODEL.DETR.SMCA.DYNAMIC_SCALE")
        settings = " and ".join(f"{key} {held[key]}" for key in keys if key in held)
        family = describe_family(built)
        builds = f"{built[keys[0]]}" + (f" ({family})" if keys[1] in built else "")
        article = "an" if describe_family(held).startswith("SMCA") else "a plain"
        raise UserError(
            f"{self.source} is {article} {describe_family(held)} checkpoint; the config builds {builds}. Set "
            f"{settings}, or set MODEL.WEIGHTS to a checkpoint of {'an' if keys[1] in built else 'a plain'} {family}."
        )

    def _fit_queries(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.allowed.resize_queries or QUERIES not in tensors:
            return tensors
        resized, count = resize_queries(tensors, self.model)
        if resized is tensors:
            return tensors
        held, rows = len(tensors[QUERIES]), len(self.model[QUERIES])
        if not self.allowed.new_head and count < rows:
            raise UserError(
                f"{self.source} holds {held} object queries; the model has {rows} (MODEL.DETR.NUM_OBJECT_QUERIES). New "
                f"ones can be trained, not evaluated: set MODEL.DETR.NUM_OBJECT_QUERIES {held} or less."
            )
        of = rows if count < rows else held
        self.notes.append(
            f"query_embed: {count} of {of} rows loaded"
            + ("" if count < rows else f", the model has no more than {rows}")
        )
        return resized

    def _select_classes(
        self, tensors: dict[str, Tensor], held: Sequence[str | None] | None, wanted: Sequence[str] | None
    ) -> dict[str, Tensor]:
        rows = head_rows(tensors)
        if held is None or len(held) != rows - 1:
            held = coco_names(rows)
            if held is None:
                raise UserError(
                    f"MODEL.DETR.LOAD.CLASSES by_name: {self.source} does not tell the names of its {rows - 1} "
                    "classes, which are not COCO's. Set MODEL.DETR.LOAD.CLASSES by_row."
                )
            self.notes.append("the file holds no class names: its rows are taken for COCO's")
        if wanted is None or len(wanted) != head_rows(self.model) - 1:
            told = "no names are known" if wanted is None else f"{len(wanted)} names are known"
            raise UserError(
                f"MODEL.DETR.LOAD.CLASSES by_name: {told} of the model's {head_rows(self.model) - 1} classes. Set "
                "thing_classes in the metadata of the dataset, or MODEL.DETR.LOAD.CLASSES by_row."
            )
        selected, match = select_classes(tensors, self.model, held, wanted)
        if match.new and not self.allowed.new_head:
            raise UserError(
                f"{self.source} does not hold the classes {', '.join(match.new)}. New classes can be trained, not "
                "evaluated: set MODEL.WEIGHTS to a checkpoint that has them."
            )
        self.notes.append(str(match))
        return selected

    def _fit_head(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, model_rows = head_rows(tensors), head_rows(self.model)
        if rows == model_rows:
            return tensors
        if not self.allowed.new_head:
            held = "no class head" if rows is None else f"a class head of {rows} rows ({rows - 1} classes)"
            raise UserError(
                f"{self.source} holds {held}; the model has {model_rows} rows (MODEL.DETR.NUM_CLASSES "
                f"{model_rows - 1}, and no-object). A new head can be trained, not evaluated or resumed: set "
                "MODEL.DETR.NUM_CLASSES as in the file, or MODEL.WEIGHTS to a checkpoint with this head."
            )
        held = "the file holds none" if rows is None else f"{rows} -> {model_rows} rows"
        self.notes.append(f"class_embed re-initialised, {held}")
        self.wanted = {name: x for name, x in self.wanted.items() if name not in HEAD}
        return {name: x for name, x in tensors.items() if name not in HEAD}

    def _query_hint(self, reshaped: list[str]) -> str:
        if reshaped != [QUERIES] or self.allowed.resize_queries:
            return ""
        return " MODEL.DETR.LOAD.QUERIES resize loads as many queries as fit."


def _stage(name: str) -> str:
    return name.removeprefix(BACKBONE).split(".")[0]
