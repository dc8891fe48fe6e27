"""The door between uint8 pictures and the float images in [−1, 1] that models see."""

import torch
from torch import Tensor


def to_model(images: Tensor) -> Tensor:
    """uint8 0 … 255 -> float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float, clipped to [−1, 1] -> uint8 0 … 255, rounded to nearest: the inverse of `to_model`."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
