"""What a loader yields."""

from typing import NamedTuple

from torch import Tensor

from lightning_diffusion.codecs.condition import Condition


class Batch(NamedTuple):
    """What a loader yields.

    images: uint8 (B, C, H, W). condition: of length B, or None where the model has none. start: the first image's
    position in the order of the data (in training an endless one); it names the batch on every rank and in every run.
    targets: what is predicted from each image, such as masks, (B, …), or None.
    """

    images: Tensor
    condition: Condition | None
    start: int
    targets: Tensor | None = None
