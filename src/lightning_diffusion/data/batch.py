"""A batch of images with their conditions."""

from typing import NamedTuple

from torch import Tensor

from lightning_diffusion.codecs.condition import Condition


class Batch(NamedTuple):
    """A batch of images.

    images: uint8 (B, C, H, W). condition: of length B, or None for a model without conditions. start: position of the
    first image in the order of the data, which is endless in training; it identifies the batch on every rank and in
    every run. targets: values to predict from each image, (B, …), or None. A mask is uint8 (B, H, W), of class numbers
    from 0, or `codecs.masks.IGNORED`. instances: with masks, the number of each pixel's instance, uint8 (B, H, W), or
    None; 0 is none.
    """

    images: Tensor
    condition: Condition | None
    start: int
    targets: Tensor | None = None
    instances: Tensor | None = None
