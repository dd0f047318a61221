"""A one-to-one matching of almost minimum cost, by entropic optimal transport, computed on the cost's device."""

import math

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from detr_d2.criterion.matching.matcher import DETR_MATCHER_REGISTRY, check_matched_finite
from detr_d2.criterion.matching.rounding import improve_by_swaps, round_to_matching
from detr_d2.utils.errors import UserError


@DETR_MATCHER_REGISTRY.register()
class SinkhornMatcher:
    """Sinkhorn's iteration (Cuturi, arXiv 1306.0895) in the log domain, then rounding and swaps.

    All layers and images are one batch, and the host never waits for the device: a GPU always runs
    ``max_iterations``. The CPU stops as soon as every problem has converged, with the same result: a converged problem
    is frozen, whatever it is batched with.

    Args:
        epsilon: weight of the entropy, relative to the spread of the costs that objects compete for.
        epsilon_init: initial weight, in multiples of ``epsilon``.
        epsilon_decay: factor per iteration on the weight, until it is ``epsilon``.
        max_iterations: maximum number of Sinkhorn iterations.
        threshold: share of an image's objects' mass that may be misplaced when it counts as converged.
        momentum_from: first iteration whose updates are over-relaxed.
        swap_sweeps: maximum number of sweeps of swaps over the rounded matching.
    """

    @configurable
    def __init__(
        self,
        *,
        epsilon: float = 1e-3,
        epsilon_init: float = 50.0,
        epsilon_decay: float = 0.9,
        max_iterations: int = 100,
        threshold: float = 1e-2,
        momentum_from: int = 50,
        swap_sweeps: int = 20,
    ):
        valid = {
            "EPSILON": (epsilon, epsilon > 0, "a number above 0"),
            "EPSILON_INIT": (epsilon_init, epsilon_init >= 1, "1 or more"),
            "EPSILON_DECAY": (epsilon_decay, 0 < epsilon_decay < 1, "a number between 0 and 1"),
            "MAX_ITERATIONS": (max_iterations, max_iterations >= 0, "0 or more"),
            "THRESHOLD": (threshold, threshold >= 0, "0 or more"),
            "MOMENTUM_FROM": (momentum_from, momentum_from >= 0, "0 or more"),
            "SWAP_SWEEPS": (swap_sweeps, swap_sweeps >= 0, "0 or more"),
        }
        for key, (value, is_valid, expected) in valid.items():
            if not is_valid:
                raise UserError(f"MODEL.DETR.SINKHORN.{key} is {value}: set {expected}.")
        self.epsilon = epsilon
        self.epsilon_init = epsilon_init
        self.epsilon_decay = epsilon_decay
        self.max_iterations = max_iterations
        self.threshold = threshold
        self.momentum_from = momentum_from
        self.swap_sweeps = swap_sweeps

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {key.lower(): value for key, value in cfg.MODEL.DETR.SINKHORN.items()}

    @torch.no_grad()
    def __call__(self, cost: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Return matches as :data:`~detr_d2.criterion.matching.Matcher` says; costs that are not finite are avoided.

        Raises:
            FloatingPointError: on the CPU only, an object was matched at a cost that is not finite. On a GPU the
                losses of such a pair are not finite, and the trainer stops there.
        """
        layers, batch, queries, width = cost.shape
        if width == 0:
            return torch.full((layers, batch, 0), -1, device=cost.device)
        coupling, problems, rows, columns = self.transport(cost, counts)
        matched = round_to_matching(coupling, rows, columns, noise=0.1)
        matched = improve_by_swaps(problems, matched, rows, columns, self.swap_sweeps)
        matches = torch.where(matched < queries, matched, -1).view(layers, batch, width)
        if cost.is_cpu:
            check_matched_finite(cost.float().numpy(), matches.numpy())
        return matches

    def transport(self, cost: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the optimal transport of N = L * B problems, before it is rounded to a matching.

        Returns:
            (N, T, Q') logarithm of the share of object t that query q gets; (N, T, Q') normalized cost; (N, T) bool,
            the rows that are objects; (N, Q') bool, the columns to choose from. Q' is Q, or T if that is more: where
            objects outnumber queries, those without a query get a column of their own.
        """
        layers, _, queries, width = cost.shape
        # Made on the host: the copy does not wait for the device.
        total = torch.tensor(counts * layers).to(cost.device, non_blocking=True)[:, None]
        rows = torch.arange(width, device=cost.device) < total
        columns = torch.arange(max(queries, width), device=cost.device) < total.clamp(min=queries)
        problems = normalize(cost.float().transpose(2, 3).flatten(0, 1), rows, columns, total[:, :, None])
        of_rows, of_columns = self._potentials(problems, rows, columns)
        return of_rows[:, :, None] + of_columns[:, None, :] - problems / self.epsilon, problems, rows, columns

    def _potentials(self, cost: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the scalings, (N, T) and (N, Q), of Sinkhorn's iteration.

        Every row and column has mass 1. One more row, with cost 0 everywhere, takes the remaining mass of the columns.
        """
        objects = rows.shape[1]
        slack = (columns.sum(1) - rows.sum(1))[:, None]
        rows = torch.cat((rows, slack > 0), 1)
        mass = torch.cat((torch.ones_like(cost[:, :, 0]), slack.clamp(min=1)), 1)
        cost = F.pad(cost, (0, 0, 0, 1))
        cost = cost.masked_fill(~(rows[:, :, None] & columns[:, None, :]), torch.inf)
        needed = rows[:, :objects].sum(1).clamp(min=1)

        u, v = torch.zeros_like(mass), torch.zeros_like(cost[:, 0])
        done = torch.zeros_like(slack, dtype=torch.bool)
        relaxation = torch.ones_like(done, dtype=cost.dtype)
        epsilon, last_error = self.epsilon * self.epsilon_init, None
        decays = math.ceil(math.log(self.epsilon_init) / -math.log(self.epsilon_decay))
        scaled = cost / epsilon
        for iteration in range(self.max_iterations):
            target = torch.where(rows, mass.log() - (v[:, None, :] - scaled).logsumexp(2), 0.0)
            if epsilon == self.epsilon:
                misplaced = (u - target).clamp(max=10).expm1().abs() * rows
                error = (misplaced[:, :objects].sum(1) / needed)[:, None]
                done = done | (error < self.threshold)
                if cost.is_cpu and done.all():
                    break
                if iteration == max(self.momentum_from, decays + 2):
                    relaxation = _over_relaxation(error, last_error)
                last_error = error
            u = torch.where(done, u, u + relaxation * (target - u))
            target = torch.where(columns, -(u[:, :, None] - scaled).logsumexp(1), 0.0)
            v = torch.where(done, v, v + relaxation * (target - v))
            if epsilon > self.epsilon:
                previous, epsilon = epsilon, max(epsilon * self.epsilon_decay, self.epsilon)
                u, v, scaled = u * (previous / epsilon), v * (previous / epsilon), cost / epsilon
        return u[:, :objects] * (epsilon / self.epsilon), v * (epsilon / self.epsilon)


def _over_relaxation(error: Tensor, last_error: Tensor) -> Tensor:
    """Return the best factor for the last rate of convergence (Lehmann et al., arXiv 2012.12562, theorem 1)."""
    rate = (error / last_error).clamp(max=0.99)
    return 2 / (1 + (1 - rate).sqrt())


def normalize(cost: Tensor, rows: Tensor, columns: Tensor, total: Tensor) -> Tensor:
    """Scale costs to a common range without changing which matching is cheapest.

    Each of n objects can be matched with one of its n cheapest queries. Their range of costs sets the scale; costs far
    above it are clipped. Entries that are not finite become costlier than any matching of finite entries.

    Args:
        cost: (N, T, Q) costs of any magnitude.
        rows: (N, T) bool, True for objects.
        columns: (N, Q + spare) bool, True for columns to choose from; the spare ones cost the same for all objects.
        total: (N, 1, 1) int64 number of objects.

    Returns:
        (N, T, Q + spare) finite, with a minimum of 0 in every row.
    """
    known = cost.isfinite() & rows[:, :, None]
    cost = cost - cost.where(known, torch.inf).amin((1, 2), keepdim=True)
    cost = F.pad(cost, (0, columns.shape[1] - cost.shape[2]))
    finite = cost.isfinite() & rows[:, :, None] & columns[:, None, :]
    cost = cost.where(finite, torch.inf)
    ordered = cost.sort(2).values
    lowest = ordered[:, :, :1]
    rank = total.expand(-1, rows.shape[1], -1).clamp(max=cost.shape[2] - 1)
    highest = cost.where(finite, -torch.inf).amax(2, keepdim=True)
    reach = (torch.minimum(ordered.gather(2, rank), highest) - lowest).nan_to_num(0.0, 0.0, 0.0)

    typical = reach.where(rows[:, :, None], torch.nan).nanmedian(1, keepdim=True).values
    mean = reach.sum(1, keepdim=True) / total.clamp(min=1)
    scale = torch.where(typical > 0, typical, torch.where(mean > 0, mean, 1.0))
    above = torch.minimum((cost - lowest) / scale, 2 * reach / scale + 1).where(finite, 0.0)
    prohibitive = (above.amax((1, 2), keepdim=True) + 1) * (total + 1)
    return above.where(finite, prohibitive)
