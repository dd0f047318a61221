"""A checkpoint's tensors against those of a model."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from detr_d2.checkpoint.architecture import infer_architecture

# A counter that only some batch norms have and that ours never use.
_OPTIONAL = ".num_batches_tracked"


@dataclass(frozen=True)
class Differences:
    """Why tensors can't be loaded; false if they can."""

    missing: list[str]
    """In the model, not in the file."""
    unexpected: list[str]
    """In the file, not in the model."""
    reshaped: list[str]
    """In both, of different shapes."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)


def compare(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> Differences:
    """Compare names and shapes of a file's ``tensors`` and the ``model``'s."""
    both = [name for name in tensors if name in model]
    return Differences(
        missing=[name for name in model if name not in tensors and not name.endswith(_OPTIONAL)],
        unexpected=[name for name in tensors if name not in model and not name.endswith(_OPTIONAL)],
        reshaped=[name for name in both if tensors[name].shape != model[name].shape],
    )


def explain(
    differences: Differences,
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    *,
    ignore: Collection[str] = (),
) -> str:
    """Say in config keys, where they tell it, and in tensors how a file and a model differ.

    Args:
        ignore: config keys that may differ.
    """
    in_file, in_model = infer_architecture(tensors), infer_architecture(model)
    keys = [x for x in in_file if x in in_model and x not in ignore and in_file[x] != in_model[x]]
    lines = [f"{key}: {in_file[key]} in the file, {in_model[key]} in the model" for key in keys]
    if differences.missing:
        lines.append(f"only in the model: {group_names(differences.missing)}")
    if differences.unexpected:
        lines.append(f"only in the file: {group_names(differences.unexpected)}")
    if differences.reshaped:
        name = differences.reshaped[0]
        shapes = f"{tuple(tensors[name].shape)} in the file, {tuple(model[name].shape)} in the model"
        lines.append(f"of other shapes: {group_names(differences.reshaped)}, such as {name}: {shapes}")
    return "\n".join(f"  {line}" for line in lines)


def group_names(names: Collection[str]) -> str:
    """Names by their part of the model, such as "2 detr.class_embed, 24 detr.transformer.decoder"."""
    if len(names) <= 3:
        return ", ".join(names)
    groups = Counter(_part(name) for name in names)
    return ", ".join(f"{count} {part}" for part, count in groups.items())


def _part(name: str) -> str:
    """The leading modules of a name, at most four, up to the first index or the tensor's own name."""
    modules = name.split(".")[:-1]
    indices = [i for i, x in enumerate(modules) if x.isdigit() and i > 2]
    return ".".join(modules[: min([4, len(modules), *indices])]) or name
