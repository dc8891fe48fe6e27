"""What a loader yields."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What a loader yields.

    images: uint8 (B, C, H, W). labels: int64 (B,), or None where the data has none. start: the first image's
    position in the order of the data (in training an endless one); it names the batch on every rank and in every run.
    """

    images: Tensor
    labels: Tensor | None
    start: int
