"""A family of its own: each pixel of each class is a Gaussian, whose likelihood is exact."""

import math

import torch
from torch import nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.models.contracts import (
    Drawn,
    Generator,
    HeldOut,
    Likelihood,
    Losses,
    Model,
    Objective,
    no_report,
)

HALF = 1 / 255  # half the distance of two levels in [−1, 1]


class Moments(nn.Module):
    """Mean and log standard deviation of each pixel of each class; the last class stands for none."""

    def __init__(self, num_classes: int, shape: tuple[int, int, int], log_std: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes + 1, *shape))
        self.log_std = nn.Parameter(torch.full((num_classes + 1, *shape), float(log_std)))

    def forward(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean[labels], self.log_std[labels].exp()


class Gaussian(Model, Generator, Likelihood):
    exact = True

    def __init__(self, channels: int, image_size: int, num_classes: int | None, log_std: float = -1.0) -> None:
        super().__init__()
        self.shape, self.num_classes = (channels, image_size, image_size), num_classes
        self.moments = Moments(num_classes or 0, self.shape, log_std)

    @property
    def network(self) -> nn.Module:
        return self.moments

    @property
    def num_steps(self) -> int:
        return 1

    def _moments(self, count: int, condition: Condition | None) -> tuple[torch.Tensor, torch.Tensor]:
        none = torch.full((count,), self.num_classes or 0, device=self.device)
        return self.moments(none if condition is None else condition.to(self.device).label)

    @torch.no_grad()
    def draw(self, indices, condition, seed, on_step=no_report) -> Drawn:
        mean, std = self._moments(len(indices), condition)
        x = mean + std * IndexedNoise(seed, indices, self.shape, self.device)()
        on_step()
        return Drawn(to_uint8(x).cpu(), len(x))

    def log_probability(self, images: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        """log P of the 256 levels of each pixel, (B, C, H, W)."""
        x, (mean, std) = to_model(images), self._moments(len(images), condition)
        upper, lower = (torch.special.ndtr((edge - mean) / std) for edge in (x + HALF, x - HALF))
        upper, lower = torch.where(images == 255, 1.0, upper), torch.where(images == 0, 0.0, lower)
        return (upper - lower).clamp(min=1e-12).log()

    @torch.no_grad()
    def bits_per_dim(self, images, condition, indices, seed) -> torch.Tensor:
        return -self.log_probability(images, condition).flatten(1).mean(1) / math.log(2)


class MaximumLikelihood(Objective):
    """Bits per dimension; a share of the classes is left out, so that "no class" is learned too."""

    def __init__(self, label_dropout: float = 0.2) -> None:
        super().__init__()
        self.label_dropout = label_dropout

    def check(self, model) -> None:
        if not isinstance(model, Gaussian):
            raise ValueError("objective: choose a model that is a Gaussian")

    def loss(self, model, batch, rng, training) -> Losses:
        condition = batch.condition
        if condition is not None:
            dropped = rng.uniform(len(condition)) < self.label_dropout
            condition = condition.dropped(dropped, condition.none(model.num_classes))
        return Losses(-model.log_probability(batch.images, condition).flatten(1).mean(1) / math.log(2))

    def held_out(self, model, batch, indices, seed) -> HeldOut:
        return HeldOut({"loss": model.bits_per_dim(batch.images, batch.condition, indices, seed)})
