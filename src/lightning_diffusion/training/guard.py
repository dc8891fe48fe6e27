"""Steps whose loss or gradient is inf or NaN."""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class Diverged(RuntimeError):
    """Such a step, taken back before anything is kept of it."""


class Skips:
    """Steps that were left out: a run that leaves out most of them learns nothing, and stops."""

    RECENT, FEWEST, MOST = 100, 10, 0.5  # steps that count, steps before anything is said, share of them

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=self.RECENT)

    def note(self, skipped: bool) -> None:
        """Counts a step. Raises Diverged where more than half of the last hundred were left out."""
        self._recent.append(skipped)
        if len(self._recent) >= self.FEWEST:
            self.check()

    def check(self) -> None:
        """Raises Diverged where more than half of the last steps were left out, however few there were."""
        steps, skipped = len(self._recent), sum(self._recent)
        if skipped > self.MOST * steps:
            raise Diverged(
                f"{skipped} of the last {steps} steps had a loss or gradient that is not finite, and were skipped"
            )


class BatchRecord(NamedTuple):
    """A batch: the position of its first image in the order, its mean loss (), and each image's time and loss (B,)."""

    start: int
    loss: Tensor
    t: Tensor
    losses: Tensor


class Step:
    """An optimizer step, and whether it is finite: known at once where it was computed, and read without a wait by a
    host that comes back later.

    Args:
        number: from 1.
        batches: whose gradients it takes, without gradient.
        norm: of the gradient, ().
    """

    def __init__(self, number: int, batches: list[BatchRecord], norm: Tensor) -> None:
        self.number, self.batches = number, batches
        losses = torch.stack([batch.loss for batch in batches]).isfinite().all()
        self._finite = torch.stack([losses, norm.isfinite()]).to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if norm.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    @property
    def loss_is_finite(self) -> bool:
        return self._read()[0]

    @property
    def gradient_is_finite(self) -> bool:
        return self._read()[1]

    def __str__(self) -> str:
        """What is not finite."""
        bad = [
            f"image {batch.start + i} of the order at t = {float(batch.t[i]):g}"
            for batch in self.batches
            for i, loss in enumerate(batch.losses.tolist())
            if not math.isfinite(loss)
        ]
        if not bad:
            first = self.batches[0].start
            return (
                f"step {self.number}: a gradient is not finite, though every loss of images {first} … of the order is"
            )
        return f"step {self.number}: the loss of {', '.join(bad[:3])}{' …' if len(bad) > 3 else ''} is not finite"

    def _read(self) -> list[bool]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._finite.tolist()
