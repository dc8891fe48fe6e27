"""Separate scores of fidelity and diversity, from nearest neighbours in feature space."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024
RESOLUTION = 1e-12  # of squared distances, relative to the longest vectors
PR_NEIGHBOUR, DC_NEIGHBOUR = 3, 5  # as published


class Overlap(NamedTuple):
    """How far two sets of features share a region. A point's ball reaches to its k-th nearest neighbour in its own set.

    Args:
        precision: share of fakes inside the ball of a real.
        recall: share of reals inside the ball of a fake.
        density: number of real balls around a fake, over k; 1 on average for equal distributions.
        coverage: share of reals with a fake in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(fake: Tensor, real: Tensor) -> Overlap:
    """The overlap of two sets of features, with k = 3 for precision and recall, and 5 for density and coverage.

    Args:
        fake, real: (M, d), (N, d).

    Raises:
        ValueError: a set of fewer than six images, which has no fifth neighbour.

    Ref: Kynkäänniemi et al., Improved Precision and Recall, Eqs. 1, 2; Naeem et al., Reliable Fidelity and Diversity
    Metrics, Eqs. 3, 5
    """
    slack = _slack(fake, real)
    reach_fake, _ = _radii(fake, slack).unbind(1)
    reach_real, wide_real = _radii(real, slack).unbind(1)
    precise, inside = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, squared in zip(reach_fake.split(BLOCK), _blocks(fake, real), strict=True):
        precise += int((squared <= reach_real).any(1).sum())
        recalled |= (squared <= rows[:, None]).any(0)
        hit = squared <= wide_real
        inside += int(hit.sum())
        covered |= hit.any(0)
    return Overlap(
        precise / len(fake),
        float(recalled.double().mean()),
        inside / (DC_NEIGHBOUR * len(fake)),
        float(covered.double().mean()),
    )


def nearest(x: Tensor, among: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances (N, k) and indices (N, k) of the k rows of `among` (M, d) nearest to each x (N, d), nearest first."""
    found = [squared.topk(min(k, len(among)), largest=False) for squared in _blocks(x, among)]
    squared, slack = torch.cat([values for values, _ in found]), _slack(x, among)
    return squared.masked_fill(squared <= slack, 0).sqrt(), torch.cat([indices for _, indices in found])


def _radii(x: Tensor, slack: float) -> Tensor:
    """Each point's squared distances to its third and to its fifth nearest neighbour, (N, 2)."""
    if len(x) <= DC_NEIGHBOUR:
        raise ValueError(f"{len(x)} images: at least {DC_NEIGHBOUR + 1} are needed for nearest neighbours")
    smallest = [squared.topk(DC_NEIGHBOUR + 1, largest=False).values for squared in _blocks(x, x)]
    return torch.cat(smallest)[:, [PR_NEIGHBOUR, DC_NEIGHBOUR]] + slack  # number 0 is the point itself


def _blocks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """‖x_i − y_j‖² in float64, BLOCK rows at a time, (·, M)."""
    y = y.double()
    y_squared = y.square().sum(1)
    for block in x.double().split(BLOCK):
        yield torch.addmm(y_squared, block, y.T, alpha=-2).add_(block.square().sum(1, keepdim=True))


def _slack(x: Tensor, y: Tensor) -> float:
    """The squared distance below which two points count as equal: rounding leaves no finer resolution."""
    return RESOLUTION * float(x.double().square().sum(1).max() + y.double().square().sum(1).max())
