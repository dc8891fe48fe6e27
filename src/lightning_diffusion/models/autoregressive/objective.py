"""Maximum likelihood."""

import math

from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.autoregressive.model import Autoregressive
from lightning_diffusion.models.contracts import HeldOut, Losses, Objective, Training
from lightning_diffusion.models.label_dropout import LabelDropout


class MaximumLikelihood(Objective):
    """−log₂ p(x) per dimension.

    Args:
        label_dropout: share of training images whose class is left out, so that the model can also draw without one.

    Raises:
        ValueError: a share outside [0, 1).
    """

    def __init__(self, label_dropout: float = 0.0) -> None:
        super().__init__()
        self.drop_labels = LabelDropout(label_dropout)

    def check(self, model: Autoregressive) -> None:
        if not isinstance(model, Autoregressive):
            raise ValueError(
                "objective: maximum likelihood here needs an autoregressive model; choose model=autoregressive"
            )

    def loss(self, model: Autoregressive, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        return Losses(bits(model, batch.images, self.drop_labels(batch.condition, model.num_classes, rng)))

    def held_out(self, model: Autoregressive, batch: Batch, indices: range, seed: int) -> HeldOut:
        return HeldOut({"loss": bits(model, batch.images, batch.condition)})


def bits(model: Autoregressive, images: Tensor, condition: Condition | None) -> Tensor:
    """−log₂ p(x) per dimension of each image, (B,)."""
    return model.log_probability(images, condition).flatten(1).mean(1) / -math.log(2)
