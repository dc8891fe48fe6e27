"""The Vendi score: how many different images a set holds."""

import torch
from torch import Tensor
from torch.nn import functional as F


def vendi_score(vectors: Tensor) -> float:
    """The effective number of different images, from 1, if all features have one direction, to min(N, d).

    VS = exp(−Σ_i λ_i log λ_i) ,   λ_i the eigenvalues of K/N ,   K_ij = x_i·x_j / (‖x_i‖ ‖x_j‖)

    With the rows x_i/‖x_i‖ in X, K = X Xᵀ. The matrix Xᵀ X has the same eigenvalues other than 0, so the smaller of the
    two is used. The score reads no real images. A feature of length 0 has no direction: it is similar to others of
    length 0 (K_ij = 1), and to nothing else (K_ij = 0).

    Args:
        vectors: features (N, d).

    Raises:
        ValueError: no images.

    Ref: Friedman and Dieng, The Vendi Score, §3
    """
    if len(vectors) == 0:
        raise ValueError("0 images have no Vendi score; at least 1 is needed")
    x = _directions(vectors.double())
    values = torch.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x) / len(x)
    return float(torch.special.entr(values.clamp(min=0)).sum().exp())


def _directions(x: Tensor) -> Tensor:
    """Rows of length 1, (N, d); (N, d + 1) if there are rows of length 0, which all get one axis of their own."""
    without = (x == 0).all(1)
    x = F.normalize(x, eps=torch.finfo(x.dtype).tiny)
    return torch.cat([x, without[:, None].to(x)], dim=1) if without.any() else x
