"""A mean over items in batches, with its standard error."""

import math

import torch
from torch import Tensor


class SampleMean:
    """The mean of all added values and its standard error, from sums that can be reduced over ranks."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        precise = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(3, device=device, dtype=precise)  # count, Σ x, Σ x²

    def add(self, values: Tensor) -> None:
        """Adds values (B,)."""
        x = values.to(self.sums)
        self.sums += torch.stack([torch.ones_like(x), x, x.square()], dim=1).sum(0)

    @property
    def mean(self) -> float:
        count, total, _ = self.sums.tolist()
        return total / count if count else math.nan

    @property
    def standard_error(self) -> float:
        """√(s²/n), where s² has the divisor n − 1; NaN for fewer than two items."""
        count, total, squares = self.sums.tolist()
        if count < 2:
            return math.nan
        return math.sqrt(max(0.0, squares - total**2 / count) / (count - 1) / count)
