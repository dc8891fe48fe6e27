"""Elementwise distances between a network's output and its target."""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn import functional as F


class Distance(ABC):
    """An elementwise error, which the training loss averages over pixels and batch."""

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The error of each element, of the shape of output and target."""


class Squared(Distance):
    """(output − target)²."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()


class Absolute(Distance):
    """|output − target|."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs()


class Huber(Distance):
    """½ r² for |r| ≤ δ, and δ (|r| − ½ δ) beyond, with r = output − target.

    Args:
        delta: δ > 0.

    Ref: Huber, Robust Estimation of a Location Parameter
    """

    def __init__(self, delta: float = 1.0) -> None:
        if delta <= 0:
            raise ValueError(f"distance.delta={delta}: choose delta > 0 (1 is usual)")
        self.delta = delta

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(output, target, reduction="none", delta=self.delta)
