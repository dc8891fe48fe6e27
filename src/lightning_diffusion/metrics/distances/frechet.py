"""The Fréchet distance between two sets of features, each treated as a Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Moments of N feature vectors, in float64.

    Args:
        number: N.
        mean: (d,).
        covariance: Σ (d, d), with the divisor N − 1.
        factor: F (N, d) with FᵀF = Σ if N < d, otherwise None.
    """

    number: int
    mean: Tensor
    covariance: Tensor
    factor: Tensor | None = None


def moments(vectors: Tensor) -> Moments:
    """The moments of feature vectors (N, d).

    Raises:
        ValueError: fewer than two vectors, which have no covariance.
    """
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} images have no covariance; at least 2 are needed")
    vectors = vectors.double()
    mean = vectors.mean(0)
    centred = vectors - mean
    factor = centred / (len(vectors) - 1) ** 0.5 if len(vectors) < vectors.shape[1] else None
    return Moments(len(vectors), mean, centred.T @ centred / (len(vectors) - 1), factor)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between two Gaussians.

    d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½ ,   tr (Σ_a Σ_b)^½ = ‖F_a F_bᵀ‖ (nuclear norm)

    for any F with FᵀF = Σ, such as Σ^½. Only roots of symmetric matrices are needed, so the distance is real and finite
    for singular covariances too. A factor with N < d rows avoids the eigenvectors of a (d, d) matrix. For N vectors in
    d ≥ N dimensions the distance is finite but far above the distance between the distributions.

    Ref: Dowson and Landau, The Fréchet Distance between Multivariate Normal Distributions, Eq. 4; Heusel et al. Eq. 6
    """
    squared = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * _overlap(a, b)
    return max(0.0, float(squared))


def _overlap(a: Moments, b: Moments) -> Tensor:
    """tr (Σ_a Σ_b)^½, computed with the smallest matrices available."""
    if a.factor is None and b.factor is not None:
        a, b = b, a
    if a.factor is not None and b.factor is None:  # the singular values of F_a Σ_b^½
        return torch.linalg.eigvalsh(a.factor @ b.covariance @ a.factor.T).clamp(min=0).sqrt().sum()
    left, right = (_root(m.covariance) if m.factor is None else m.factor for m in (a, b))
    return torch.linalg.svdvals(left @ right.T).sum()


def _root(covariance: Tensor) -> Tensor:
    """Σ^½ of a symmetric Σ ≥ 0; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
