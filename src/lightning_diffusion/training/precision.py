"""Reduced precision, which only the network uses."""

import contextlib
import time
from collections.abc import Iterator

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn


class TrueBFloat16(Precision):
    """trainer.precision=bf16-true: the network's weights, gradients and optimizer state in bf16, half the memory.

    The mathematics around the network and the moving average of the weights stay in float32. Lightning's own plugin
    rounds them too: with ᾱ in bf16 the first ten of 1000 steps add no noise, and an average at decay 0.9999 never
    moves.

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
    """Time of a matrix product in bfloat16, divided by its time in float32, on this CPU. CPUs without bfloat16
    instructions take hundreds of times as long."""

    def least(dtype: torch.dtype) -> float:
        matrix, seconds = torch.ones(side, side, dtype=dtype), []
        for _ in range(tries):
            began = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return least(torch.bfloat16) / least(torch.float32)
