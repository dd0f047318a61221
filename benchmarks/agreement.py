"""Whether two programs that are to be timed do the same."""

from collections.abc import Mapping

from torch import Tensor

from detr_d2.utils.errors import UserError


def difference(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """By output: of floating-point numbers the largest absolute difference, of others the share that differs.

    Raises:
        UserError: an output is missing, has another shape, or holds numbers that are not finite.
    """
    if outputs.keys() != expected.keys():
        raise UserError(f"The outputs are {sorted(outputs)} and {sorted(expected)}: nothing to compare.")
    return {name: _difference(name, outputs[name], expected[name]) for name in expected}


def _difference(name: str, output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        raise UserError(f"The {name} have the shapes {tuple(output.shape)} and {tuple(expected.shape)}.")
    if not expected.numel():
        return 0.0
    output, expected = output.detach().cpu(), expected.detach().cpu()
    if not expected.is_floating_point():
        return (output != expected).double().mean().item()
    if not (output.isfinite().all() and expected.isfinite().all()):
        raise UserError(f"The {name} hold numbers that are not finite.")
    return (output.double() - expected.double()).abs().max().item()


def check_agreement(
    name: str, outputs: Mapping[str, Tensor], baseline: str, expected: Mapping[str, Tensor], tolerance: float
) -> float:
    """
    Returns:
        the largest of the differences, see :func:`difference`.

    Raises:
        UserError: one of them exceeds ``tolerance``, or can't be told.
    """
    try:
        found = difference(outputs, expected)
    except UserError as e:
        raise UserError(f"{name} and {baseline} can't be compared, so timing them says nothing: {e}") from e
    worst = max(found, key=found.get)
    if found[worst] > tolerance:
        raise UserError(
            f"{name} and {baseline} disagree, so timing them says nothing: their {worst} differ by "
            f"{found[worst]:.3g}, more than {tolerance:g}."
        )
    return found[worst]
