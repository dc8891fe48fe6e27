"""A user's own package, with a network that the project does not know."""

import os  # noqa: F401 - what a package imports is not its own
from typing import Any

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition

VALUE = 1


class Doubled(nn.Module):
    """A convolution with an embedding of classes."""

    def __init__(self, in_channels: int, num_classes: int | None, channels: int = 8, **options: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = nn.Embedding((num_classes or 0) + 1, channels)
        self.first, self.last = nn.Conv2d(in_channels, channels, 3, padding=1), nn.Conv2d(channels, in_channels, 1)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        hidden = self.first(x)
        if condition is not None:
            hidden = hidden + self.classes(condition.label)[:, :, None, None]
        return self.last(torch.relu(hidden))
