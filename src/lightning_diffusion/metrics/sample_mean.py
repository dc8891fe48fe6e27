"""A mean over items that come in batches, and how far it may be off."""

import math

import torch
from torch import Tensor


class SampleMean:
    """The mean of what was added, and the standard error of that mean, from sums that ranks can add up."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        precise = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(3, device=device, dtype=precise)  # count, Σ x, Σ x²

    def add(self, values: Tensor) -> None:
        """values (B,)."""
        x = values.to(self.sums)
        self.sums += torch.stack([torch.ones_like(x), x, x.square()], dim=1).sum(0)

    @property
    def mean(self) -> float:
        count, total, _ = self.sums.tolist()
        return total / count if count else math.nan

    @property
    def standard_error(self) -> float:
        """√(s²/n), s² with n − 1; NaN of fewer than two items."""
        count, total, squares = self.sums.tolist()
        if count < 2:
            return math.nan
        return math.sqrt(max(0.0, squares - total**2 / count) / (count - 1) / count)
