"""Reduced precision lives inside the network alone."""

import contextlib
from collections.abc import Iterator

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn


class TrueBFloat16(Precision):
    """trainer.precision=bf16-true: weights, gradients and optimizer state of the network in bf16, half the memory.

    The mathematics around it and the moving average of the weights stay in float32. Lightning's own plugin rounds them
    too: ᾱ in bf16 gives the first ten of 1000 steps no noise, and an average at decay 0.9999 never moves.

    Args:
        device_type: "cuda", "mps" or "cpu".
    """

    precision = "bf16-true"

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def convert_module(self, module: nn.Module) -> nn.Module:
        module.denoiser.backbone.to(torch.bfloat16)  # type: ignore[union-attr]
        return module

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        with torch.autocast(self.device_type, torch.bfloat16, cache_enabled=False):
            yield
