"""The kernel distance: the squared maximum mean discrepancy under a polynomial kernel."""

import torch
from torch import Tensor

BLOCK = 2048


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of MMD² from all pairs. For equal distributions it is 0 on average, and often negative.

    MMD² = Σ_{i≠j} k(x_i, x_j) / m(m−1) + Σ_{i≠j} k(y_i, y_j) / n(n−1) − 2 Σ_{ij} k(x_i, y_j) / mn
    k(a, b) = (a·b/d + 1)³

    Published KID averages this estimate over random subsets. All pairs give the same mean with less variance.

    Args:
        x: (m, d). y: (n, d).

    Raises:
        ValueError: fewer than two vectors in a set.

    Ref: Binkowski et al., Demystifying MMD GANs, Eq. 4
    """
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise ValueError(f"{min(m, n)} images have no pairs; at least 2 are needed")
    x, y = x.double(), y.double()
    within_x = (_sum(x, x) - _kernel((x * x).sum(1), x.shape[1]).sum()) / (m * (m - 1))
    within_y = (_sum(y, y) - _kernel((y * y).sum(1), y.shape[1]).sum()) / (n * (n - 1))
    return float(within_x + within_y - 2 * _sum(x, y) / (m * n))


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """Σ_{ij} k(x_i, y_j), in blocks of rows, so that the memory grows linearly with the number of images."""
    return torch.stack([_kernel(block @ y.T, x.shape[1]).sum() for block in x.split(BLOCK)]).sum()


def _kernel(products: Tensor, d: int) -> Tensor:
    base = products / d + 1
    return base * base * base
