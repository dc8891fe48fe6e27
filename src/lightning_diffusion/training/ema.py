"""The exponential moving average of the weights."""

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lightning_diffusion.training.sharding import unshard

Model = TypeVar("Model", bound=nn.Module)


class ExponentialMovingAverage(nn.Module, Generic[Model]):
    """θ̄ ← d θ̄ + (1 − d) θ after every optimizer step, d = min(decay, (1 + n)/(10 + n)) at the n-th step, n = 0, 1, ….

    A second copy of the model holds the average, so no weights are swapped to use it. It is part of the state dict: a
    checkpoint without it does not load. Every device holds all of it, in the model's initial precision, even if the
    trained model is sharded or rounded. Only parameters are averaged; buffers are copied. The warm-up of d lets short
    runs forget their random initialization.

    Args:
        model: the trained model.
        decay: d in [0, 1); 0 follows the weights.
        shared: parts that both copies share.

    Ref: DDPM App. B (0.9999); TensorFlow's ExponentialMovingAverage(num_updates) for the warm-up
    """

    model: Model

    def __init__(self, model: Model, decay: float, shared: Sequence[object] = ()) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"module.ema_decay={decay}: choose 0 <= ema_decay < 1 (0 follows the weights)")
        self.decay = decay
        self.model = copy.deepcopy(model, {id(part): part for part in shared}).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ExponentialMovingAverage[Model]":
        """Keeps the averaged model in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def decay_at(self, step: int) -> float:
        """The decay d at optimizer step number `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Averages in the weights after optimizer step number `step`, counted from 0."""
        averages: list[Tensor] = list(self.model.parameters())
        weights = [unshard(w).to(average) for w, average in zip(model.parameters(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
