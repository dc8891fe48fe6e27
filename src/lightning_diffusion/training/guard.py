"""Steps whose loss or gradient is inf or NaN."""

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

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
    """A batch: the position of its first image in the order, its mean loss (), each image's loss (B,), and what chance
    decided for each image, (B,) by name."""

    start: int
    loss: Tensor
    losses: Tensor
    drawn: Mapping[str, Tensor]


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
            f"image {batch.start + i} of the order" + _at(batch.drawn, i)
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


class Guard:
    """Stops a run at the first step that is not finite, or leaves such steps out.

    Args:
        policy: "stop" or "skip".
    """

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        self.policy = policy
        self._batches: list[BatchRecord] = []  # of the step under way
        self._unread: Step | None = None
        self._skips = Skips()

    def add(self, batch: BatchRecord) -> None:
        """Takes note of a batch of the step under way."""
        self._batches.append(batch)

    def admits(
        self, number: int, norm: Tensor, scaled: bool, runs_ahead: bool, any_rank: Callable[[bool], bool]
    ) -> bool:
        """Whether the optimizer may take step `number`, whose gradient has this norm: the same on every rank, averaged
        as it is by now.

        Args:
            scaled: whether a loss scaler is at work. It tries its luck, and leaves out steps that overflow by itself.
            runs_ahead: whether the host prepares the next step while this one computes, and hears of it then: a GPU
                that waits for its host stands still meanwhile.
            any_rank: whether something holds on any rank.

        Raises:
            Diverged: a step that is not finite, or too many of them that were left out.
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
        """Raises Diverged where the last step was not finite."""
        step, self._unread = self._unread, None
        if step is not None and not (step.gradient_is_finite and step.loss_is_finite):
            raise Diverged(str(step))

    def finish(self) -> None:
        """At the end of training. Raises Diverged as `check`, and where most of the last steps were left out."""
        self.check()
        self._skips.check()


def _at(drawn: Mapping[str, Tensor], i: int) -> str:
    """What chance decided for image i, in words: at t = 0.5."""
    return "".join(f" at {name} = {float(values[i]):g}" for name, values in drawn.items())
