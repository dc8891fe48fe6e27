"""Learning-rate schedules. ("Scheduler" always means a learning-rate scheduler in this project.)"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, max_steps: int, final: float = 0.0) -> LambdaLR:
    """Linear from 0 over the warm-up, then half a cosine down to `final` times the peak at max_steps.

    Args:
        warmup_steps: ≥ 0.
        max_steps: > warmup_steps.
        final: final learning rate as a share of the peak, in [0, 1].
    """
    _check(warmup_steps, final)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def warmup_constant(optimizer: Optimizer, warmup_steps: int) -> LambdaLR:
    """Linear from 0 over the warm-up, then constant. Ref: DDPM App. B (5,000 steps)"""
    _check(warmup_steps)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))


def _check(warmup_steps: int, final: float = 0.0) -> None:
    if warmup_steps < 0:
        raise ValueError(f"lr_scheduler.warmup_steps={warmup_steps}: must be at least 0")
    if not 0 <= final <= 1:
        raise ValueError(f"lr_scheduler.final={final}: choose a share of the peak in [0, 1]")
