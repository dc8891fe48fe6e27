"""Another family: a linear map from an image to the probability that each pixel is ink. It draws nothing."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.models.contracts import HeldOut, Losses, Model, Objective, Predictor

INK = 128


class LinearMasks(Model, Predictor):
    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.shape, self.num_classes = (channels, image_size, image_size), None
        self.linear = nn.Conv2d(channels, 1, 1)

    @property
    def network(self) -> nn.Module:
        return self.linear

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(to_model(images))[:, 0] > 0


class CrossEntropy(Objective):
    figures = ("loss", "accuracy")

    def check(self, model) -> None:
        if not isinstance(model, Predictor):
            raise ValueError("objective: choose a model that predicts")

    def per_image(self, model, images):
        masks = (images[:, :1] >= INK).float()
        losses = F.binary_cross_entropy_with_logits(model.linear(to_model(images)), masks, reduction="none")
        return losses.flatten(1).mean(1)

    def loss(self, model, batch, rng, training) -> Losses:
        return Losses(self.per_image(model, batch.images))

    def held_out(self, model, batch, indices, seed) -> HeldOut:
        right = model.predict(batch.images) == (batch.images[:, 0] >= INK)
        return HeldOut({"loss": self.per_image(model, batch.images), "accuracy": right.float().flatten(1).mean(1)})
