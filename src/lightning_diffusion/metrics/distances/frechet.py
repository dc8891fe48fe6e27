"""The Fréchet distance of two sets of features, each taken as a Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """number N, mean (d,) and covariance Σ (d, d) with 1/(N − 1), in float64; of fewer vectors than dimensions also a
    factor F (N, d), FᵀF = Σ."""

    number: int
    mean: Tensor
    covariance: Tensor
    factor: Tensor | None = None


def moments(vectors: Tensor) -> Moments:
    """Of feature vectors (N, d).

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
    """The squared 2-Wasserstein distance of two Gaussians.

    d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½ ,   tr (Σ_a Σ_b)^½ = ‖F_a F_bᵀ‖ (nuclear norm)

    for any FᵀF = Σ, such as Σ^½. This takes no root of a matrix that is not symmetric: the distance is real and finite
    for singular covariances too. A factor of N < d rows spares the eigenvectors of a (d, d) matrix. With N vectors in
    d ≥ N dimensions the distance is finite but well above that of the distributions.

    Ref: Dowson and Landau, The Fréchet Distance between Multivariate Normal Distributions, Eq. 4; Heusel et al. Eq. 6
    """
    squared = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * _overlap(a, b)
    return max(0.0, float(squared))


def _overlap(a: Moments, b: Moments) -> Tensor:
    """tr (Σ_a Σ_b)^½ in the smallest matrices there are."""
    if a.factor is None and b.factor is not None:
        a, b = b, a
    if a.factor is not None and b.factor is None:  # the singular values of F_a Σ_b^½
        return torch.linalg.eigvalsh(a.factor @ b.covariance @ a.factor.T).clamp(min=0).sqrt().sum()
    left, right = (_root(m.covariance) if m.factor is None else m.factor for m in (a, b))
    return torch.linalg.svdvals(left @ right.T).sum()


def _root(covariance: Tensor) -> Tensor:
    """Σ^½ of a symmetric Σ ≥ 0; what rounding has made of its zeros counts as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
