"""The Fréchet distance, extrapolated to infinitely many samples."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.metrics.distances.frechet import Moments, frechet_distance, moments

PARTS = 5  # the samples are used as a whole and in 2 … PARTS equal parts
PER_DIMENSION = 5  # samples of a part for each dimension, at least; with fewer, the bias is not linear in 1/n
GROUPS = 10  # of the jackknife
SEED = 0  # of the order


class Extrapolated(NamedTuple):
    """FD∞, which chance can make negative near 0, and its standard error."""

    value: float
    error: float


def least(dimensions: int) -> int:
    """The fewest samples for an extrapolation: enough for two parts with one group left out."""
    return -(-2 * PER_DIMENSION * dimensions * GROUPS // (GROUPS - 1))


def extrapolated(vectors: Tensor, real: Moments) -> Extrapolated:
    """FD as a straight line in 1/n, at 1/n = 0: the distance without the bias of a finite number of samples.

        E FD(n) = FD∞ + c/n + O(1/n²)

    Each of the k disjoint parts of N/k samples gives a point of the line, k = 1, 2, …, so that every sample counts
    equally at each n. The standard error is the jackknife's: √((G − 1)/G Σ_g (FD∞⁻ᵍ − mean)²) over G = 10 groups that
    are left out in turn. The bias from the finite number of real images stays.

    Args:
        vectors: features (N, d); they are shuffled with a fixed seed.
        real: moments of the real images.

    Raises:
        ValueError: fewer samples than `least`.

    Ref: Chong and Forsyth, Effectively Unbiased FID and Inception Score and where to find them, §3; Efron, The
    Jackknife, Eq. 3.4
    """
    N, d = vectors.shape
    if least(d) > N:
        raise ValueError(f"{N} samples in {d} dimensions: an extrapolation needs at least {least(d)}")
    order = torch.randperm(N, generator=torch.Generator().manual_seed(SEED))
    vectors = vectors[order].double()
    most = min(PARTS, (N - -(-N // GROUPS)) // (PER_DIMENSION * d))
    group = torch.arange(N) % GROUPS
    without = torch.tensor([_at_infinity(vectors[group != g], real, most) for g in range(GROUPS)])
    error = ((GROUPS - 1) / GROUPS * (without - without.mean()).square().sum()).sqrt()
    return Extrapolated(_at_infinity(vectors, real, most), float(error))


def _at_infinity(vectors: Tensor, real: Moments, most: int) -> float:
    """The intercept of the least-squares line through the distances of the whole set and of its 2 … `most` parts."""
    parts = [part for k in range(1, most + 1) for part in vectors.tensor_split(k)]
    x = torch.tensor([1 / len(part) for part in parts], dtype=torch.float64)
    y = torch.tensor([frechet_distance(moments(part), real) for part in parts], dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())
