"""Detection of training steps whose loss or gradient is inf or NaN."""

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Diverged(RuntimeError):
    """A step whose loss or gradient is not finite. Nothing computed from it is saved."""


class Skips:
    """Counts skipped steps, and stops a run that skips most of them: it learns nothing."""

    RECENT, FEWEST, MOST = 100, 10, 0.5  # steps that count, steps before the first check, share of skips

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=self.RECENT)

    def note(self, skipped: bool) -> None:
        """Counts a step. Raises Diverged if more than half of the last hundred steps were skipped."""
        self._recent.append(skipped)
        if len(self._recent) >= self.FEWEST:
            self.check()

    def check(self) -> None:
        """Raises Diverged if more than half of the last steps were skipped, however few there were."""
        steps, skipped = len(self._recent), sum(self._recent)
        if skipped > self.MOST * steps:
            raise Diverged(f"skipped {skipped} of the last {steps} steps, whose loss or gradient was not finite")


class BatchRecord(NamedTuple):
    """A batch: its first image's position in the training order, its mean loss (), each image's loss (B,), and each
    image's random draws, (B,) by name."""

    start: int
    loss: Tensor
    losses: Tensor
    drawn: Mapping[str, Tensor]


class Step:
    """An optimizer step, and whether its losses and gradient are finite. The check is copied from the device without
    a wait; only reading it waits.

    Args:
        number: counted from 1.
        batches: the batches whose gradients the step uses, detached.
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
        """Names the loss or gradient that is not finite."""
        bad = [
            f"image {batch.start + i} in the training order" + _draws_of(batch.drawn, i)
            for batch in self.batches
            for i, loss in enumerate(batch.losses.tolist())
            if not math.isfinite(loss)
        ]
        if not bad:
            first = self.batches[0].start
            return (
                f"step {self.number}: the gradient is not finite, although every loss is (images from {first} in the "
                "training order)"
            )
        return f"step {self.number}: the loss of {', '.join(bad[:3])}{' …' if len(bad) > 3 else ''} is not finite"

    def _read(self) -> list[bool]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._finite.tolist()


class Guard:
    """Stops a run at the first step that is not finite, or skips such steps.

    Args:
        policy: "stop" or "skip".
    """

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        self.policy = policy
        self._batches: list[BatchRecord] = []  # of the current step
        self._unread: Step | None = None
        self._skips = Skips()

    def add(self, batch: BatchRecord) -> None:
        """Adds a batch to the current step."""
        self._batches.append(batch)

    def admits(
        self, number: int, norm: Tensor, scaled: bool, runs_ahead: bool, any_rank: Callable[[bool], bool]
    ) -> bool:
        """Whether the optimizer may take step `number`. Every rank gives the same answer.

        Args:
            norm: of the gradient, averaged over the ranks.
            scaled: whether a loss scaler is active. It skips steps that overflow by itself.
            runs_ahead: whether the host checks this step only when the next one begins, so that a GPU never waits for
                its host.
            any_rank: returns whether a condition holds on any rank.

        Raises:
            Diverged: the step is not finite, or too many steps were skipped.
        """
        self.check()
        step, self._batches = Step(number, self._batches, norm), []
        if self.policy == "stop" and not scaled:
            self._unread = step
            if not runs_ahead:
                self.check()
            return True
        finite = step.gradient_is_finite
        if scaled and not finite:
            finite = not any_rank(not step.loss_is_finite)
        if self.policy == "stop" and not (finite and step.loss_is_finite):
            raise Diverged(str(step))
        if not finite:
            print(f"{step}; skipped", file=sys.stderr)
        self._skips.note(not finite)
        return finite

    def check(self) -> None:
        """Raises Diverged if the last step was not finite."""
        step, self._unread = self._unread, None
        if step is not None and not (step.gradient_is_finite and step.loss_is_finite):
            raise Diverged(str(step))

    def finish(self) -> None:
        """Ends training. Raises Diverged as `check` does, and if most of the last steps were skipped."""
        self.check()
        self._skips.check()


def _draws_of(drawn: Mapping[str, Tensor], i: int) -> str:
    """The random draws of image i as text: " at t = 0.5"."""
    return "".join(f" at {name} = {float(values[i]):g}" for name, values in drawn.items())
