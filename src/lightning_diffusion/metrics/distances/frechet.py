"""The Fréchet distance of two sets of features, each taken as a Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """number N, mean (d,) and covariance (d, d) with 1/(N − 1), in float64."""

    number: int
    mean: Tensor
    covariance: Tensor


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
    return Moments(len(vectors), mean, centred.T @ centred / (len(vectors) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance of two Gaussians.

    d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½ ,   tr (Σ_a Σ_b)^½ = ‖Σ_a^½ Σ_b^½‖ (nuclear norm)

    The norm needs no root of a matrix that is not symmetric: the distance is real and finite for singular covariances
    too. With N vectors in d ≥ N dimensions it is finite but well above that of the distributions.

    Ref: Dowson and Landau, The Fréchet Distance between Multivariate Normal Distributions, Eq. 4; Heusel et al. Eq. 6
    """
    overlap = torch.linalg.matrix_norm(_root(a.covariance) @ _root(b.covariance), "nuc")
    squared = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, float(squared))


def _root(covariance: Tensor) -> Tensor:
    """Σ^½ of a symmetric Σ ≥ 0; what rounding has made of its zeros counts as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
