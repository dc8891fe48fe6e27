"""Training progress: a bar on a terminal, an occasional line in a log."""

import math
import re
import time
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_diffusion.configuration.quick import ten_minutes
from lightning_diffusion.system.console import clock
from lightning_diffusion.system.progress import Phase, say

HOUR = 3600.0
ENOUGH_SECONDS, ENOUGH_STEPS, MANY_STEPS = 20.0, 3, 20  # after the first step, for an estimate of the run's time


class RichProgress(ProgressBar):
    """Shows step, loss, images/s and time left during training, the progress of a validation, and its results.

    Each measurement is shown once. If a run would take more than an hour on a CPU, a line names the ten-minute recipe
    for the same data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._silent = False
        self._open = ExitStack()
        self._validation = ExitStack()
        self._training: Phase | None = None
        self._batches: Phase | None = None
        self._loss: Tensor | None = None
        self._rate, self._new_rate = 0.0, False
        self._first_step = 0.0  # time at which it was done; 0 before
        self._steps, self._estimated = 0, False

    def disable(self) -> None:
        """Silences this bar; Lightning calls it on every rank but the first."""
        self._silent = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        phase = Phase("training", trainer.max_steps, done=trainer.global_step, note=self._note)
        self._training = self._open.enter_context(phase)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and isinstance(loss := outputs.get("loss"), Tensor):
            self._loss = loss.detach() * trainer.accumulate_grad_batches
        if "images_per_second" in trainer.progress_bar_metrics:
            rate = float(trainer.progress_bar_metrics["images_per_second"])
            self._rate, self._new_rate = rate, self._new_rate or rate != self._rate
        if self._training is not None and (count := trainer.global_step - self._training.done):
            self._training.advance(count)
            self._estimate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open.close()
        self._training = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        for phases in (self._validation, self._open):
            phases.__exit__(type(exception), exception, exception.__traceback__)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = sum(int(count) for count in trainer.num_val_batches if math.isfinite(count))
        self._batches = self._validation.enter_context(Phase("validation", batches or None, "batch"))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._batches is not None:
            self._batches.advance()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation.close()  # before other callbacks draw samples
        self._batches = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the measured values in a line, except at the end of the run: its summary follows."""
        measured = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if re.match(r"val/(?!.*_(q\d|se)$)|fd_|fid", name) and math.isfinite(float(value))
        }
        last = trainer.global_step >= trainer.max_steps or trainer.state.fn != TrainerFn.FITTING
        if not (self._silent or last or trainer.sanity_checking):
            parts = ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in measured.items())
            say(f"validation after {trainer.global_step:,} steps: {parts}")

    def _note(self) -> str:
        """The loss of the last step, and the throughput if it was measured since it was last shown."""
        parts = [] if self._loss is None else [f"loss {float(self._loss):.4f}"]
        if self._new_rate:
            self._new_rate = self._training is not None and not self._training.in_a_log  # a bar keeps showing it
            parts.append(f"{self._rate:,.0f} images/s" if self._rate >= 10 else f"{self._rate:.2g} images/s")
        return ", ".join(parts)

    def _estimate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Prints one line after some steps if the run needs more than an hour on this CPU."""
        self._first_step, self._steps = self._first_step or time.monotonic(), self._steps + 1
        seconds, steps = time.monotonic() - self._first_step, self._steps - 1
        if self._estimated or steps < ENOUGH_STEPS or (seconds < ENOUGH_SECONDS and steps < MANY_STEPS):
            return
        self._estimated, each = True, seconds / steps
        left = each * (trainer.max_steps - trainer.global_step)
        if left > HOUR and trainer.strategy.root_device.type == "cpu" and not self._silent:
            say(f"note: this run takes about {clock(left)} more on this CPU; {ten_minutes(dict(module.hparams), each)}")
