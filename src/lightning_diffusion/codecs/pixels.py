"""Codecs: they convert between uint8 pictures and the space that a model works in, here pixels in [−1, 1]."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Codec(ABC):
    """Encodes pictures for a model and decodes its samples. It is stored in the checkpoint."""

    @abstractmethod
    def shape(self, picture: tuple[int, int, int]) -> tuple[int, ...]:
        """The shape of the code of a picture (C, H, W)."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, …)."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """Float (B, …) -> uint8 (B, C, H, W)."""


class Pixels(Codec):
    """The pixels, in [−1, 1]."""

    def shape(self, picture: tuple[int, int, int]) -> tuple[int, ...]:
        return picture

    def encode(self, images: Tensor) -> Tensor:
        return to_model(images)

    def decode(self, code: Tensor) -> Tensor:
        return to_uint8(code)


def to_model(images: Tensor) -> Tensor:
    """uint8 0 … 255 -> float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float, clipped to [−1, 1] -> uint8 0 … 255, rounded to nearest: the inverse of `to_model`."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
