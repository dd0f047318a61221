"""Making weights fit other queries or classes, on request: what fits is copied, the rest stays as built."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detr_d2.checkpoint.class_head import HEAD

QUERIES = "detr.query_embed.weight"


@dataclass(frozen=True)
class ClassMatch:
    """Which classes of a model a file holds."""

    found: list[str]
    new: list[str]

    def __str__(self) -> str:
        text = f"class_embed by name: {len(self.found)} of {len(self.found) + len(self.new)} classes loaded"
        found = f" ({_listed(self.found)})" if self.found else ""
        return text + found + (f", new: {_listed(self.new)}" if self.new else "")


def resize_queries(tensors: dict[str, Tensor], model: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Give ``tensors`` as many object queries as ``model`` has.

    Returns:
        The tensors, the same ones if there is nothing to do; and how many of the model's queries are the file's.
    """
    held, wanted = tensors.get(QUERIES), model[QUERIES]
    if held is None or held.shape[1:] != wanted.shape[1:]:
        return tensors, 0
    count = min(len(held), len(wanted))
    if len(held) == len(wanted):
        return tensors, count
    queries = wanted.detach().clone()
    queries[:count] = held[:count]
    return {**tensors, QUERIES: queries}, count


def select_classes(
    tensors: dict[str, Tensor], model: dict[str, Tensor], held: Sequence[str | None], wanted: Sequence[str]
) -> tuple[dict[str, Tensor], ClassMatch]:
    """Bring the rows of the class head to the model's order by the classes' names, whose case makes no difference.

    Args:
        tensors, model: with a head each. The last row, no-object, goes to the last one.
        held: names of the rows in ``tensors``, without no-object; None for a row that is no class.
        wanted: names of the classes of ``model``.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(held):
        if name is not None:
            rows.setdefault(_key(name), row)
    found = [i for i, name in enumerate(wanted) if _key(name) in rows]
    source = [rows[_key(wanted[i])] for i in found]
    selected = dict(tensors)
    for name in HEAD:
        selected[name] = model[name].detach().clone()
        selected[name][[*found, -1]] = tensors[name][[*source, -1]].to(selected[name])
    match = ClassMatch([wanted[i] for i in found], [x for i, x in enumerate(wanted) if i not in found])
    return selected, match


def _key(name: str) -> str:
    return name.strip().casefold()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
