"""Reduced precision lives inside the network alone."""

import contextlib
import time
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
        module.model.network.to(torch.bfloat16)  # type: ignore[union-attr]
        return module

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        with torch.autocast(self.device_type, torch.bfloat16, cache_enabled=False):
            yield


def bf16_slowdown(side: int = 256, tries: int = 3) -> float:
    """How many times as long as in float32 a product of matrices takes in bfloat16 on this CPU: hundreds of times on
    one that has no instructions for it."""

    def least(dtype: torch.dtype) -> float:
        matrix, seconds = torch.ones(side, side, dtype=dtype), []
        for _ in range(tries):
            began = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return least(torch.bfloat16) / least(torch.float32)
