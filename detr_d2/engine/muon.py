"""Muon: steps that are orthogonal matrices, for the hidden layers; AdamW for the other parameters.

The step of a matrix is its averaged gradient with all singular values set to about one (Jordan et al., "Muon: an
optimizer for hidden layers in neural networks", 2024), on the scale of AdamW's steps (arXiv 2502.16982, section 2.2).
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

_ITERATIONS = 5
# Of the odd polynomial of degree five that takes singular values in (0, 1] near one fastest (Jordan et al., 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Root mean square of AdamW's usual step, relative to the learning rate (arXiv 2502.16982, equation 4).
_STEP_SIZE = 0.2
# Matrices that map to fewer outputs or from fewer inputs are no hidden layers: images, coordinates, depthwise filters.
_MIN_CHANNELS = 16
# Weights that hold the matrices of queries, keys and values one below the other.
_STACKED = {"in_proj_weight": 3, "qkv.weight": 3}


class Muon(torch.optim.Optimizer):
    """Optimizer with Muon's steps in groups with ``stacked`` and AdamW's in the others.

    Args:
        groups: parameter groups with ``params``, ``lr``, ``weight_decay``. ``stacked``, in groups of matrices and
            convolutions, is the number of equal matrices that each weight consists of.
        momentum: of the matrices' averaged gradients.
        dtype: data type in which steps are made orthogonal; bfloat16 is exact enough.
        adamw: keyword arguments of :class:`torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict], *, momentum: float = 0.95, dtype: torch.dtype = torch.float32, **adamw):
        self.dtype = dtype
        self._adamw = torch.optim.AdamW([x for x in groups if "stacked" not in x], **adamw)
        matrices = [{"momentum": momentum, **x} for x in groups if "stacked" in x]
        super().__init__([*matrices, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Update the parameters that have a gradient; ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon does not evaluate closures.")
        # Loading a state replaces both.
        self._adamw.state = self.state
        self._adamw.param_groups = [x for x in self.param_groups if "stacked" not in x]
        self._adamw.step()
        for group in self.param_groups:
            if "stacked" in group:
                self._step_of_matrices(group)

    def _step_of_matrices(self, group: dict) -> None:
        same_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            average = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            # Nesterov's momentum.
            update = p.grad.lerp(average, group["momentum"]).flatten(1)
            update = update.unflatten(0, (group["stacked"], -1))
            same_shape[update.shape].append((p, update))
        for (_, rows, columns), items in same_shape.items():
            updates = torch.cat([update for _, update in items])
            steps = orthogonalized(updates, self.dtype).split(group["stacked"])
            rate = group["lr"] * _STEP_SIZE * max(rows, columns) ** 0.5
            for (p, _), step in zip(items, steps, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step.reshape(p.shape), alpha=-rate)


def orthogonalized(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return U V^T of the singular value decomposition U S V^T of each matrix, approximately, by Newton-Schulz.

    Args:
        matrices: (N, m, n).
        dtype: data type of the iterations.

    Returns:
        (N, m, n) in this type, with singular values from about 0.7 to 1.2, except those that are nearly zero before.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = (wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


def muon_groups(groups: list[dict], model: nn.Module) -> list[dict]:
    """Split parameter groups into those of Muon's matrices and those of AdamW.

    Muon gets the weights of hidden linear layers and convolutions; embeddings, norms, biases, layers that read images
    and layers that predict are left to AdamW.
    """
    stacked = _hidden_weights(model)
    split: dict[tuple[int, int], dict] = {}
    for i, group in enumerate(groups):
        for p in group["params"]:
            count = stacked.get(p, 0)
            new = {**group, "params": [], **({"stacked": count, "name": f"{group['name']}, Muon"} if count else {})}
            split.setdefault((i, count), new)["params"].append(p)
    return list(split.values())


def _hidden_weights(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return the weights for Muon, with the number of matrices in each."""
    skipped = {p for x in model.modules() if isinstance(x, nn.Embedding) for p in x.parameters()}
    weights = {}
    for name, p in model.named_parameters():
        if p in skipped or "class_embed" in name or p.ndim < 2 or min(p.shape[:2]) < _MIN_CHANNELS:
            continue
        weights[p] = next((count for ending, count in _STACKED.items() if name.endswith(ending)), 1)
    return weights
