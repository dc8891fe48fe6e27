"""The LightningModule: where a batch meets the objective."""

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.noise import stream_seed
from src.diffusion.objective import Objective
from src.images import Batch, to_model
from src.training.ema import ExponentialMovingAverage
from src.training.loggers import is_log_step


class Diverged(RuntimeError):
    """A step whose loss or gradient is inf or NaN, taken back before it reached the weights."""


class DiffusionModule(L.LightningModule):
    """Trains a denoiser on uint8 batches and keeps the moving average that validation, sampling and users see.

    All randomness of a training step (times, noise, dropout) is a function of (seed, position of the rank's first
    image in the endless order): it differs between ranks and steps, and a resumed run draws what it would have drawn.
    In validation, image i always meets the same ε and t: losses compare between epochs and between runs.

    Args:
        denoiser: the network to train.
        objective: the loss.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> learning-rate schedule, stepped after each optimizer step.
        ema_decay: of the weights' moving average, in [0, 1).
        seed: of the training noise.
        val_seed: of the validation noise, fixed so that runs with different seeds compare.
        nonfinite: what to do where a loss or gradient is inf or NaN: `stop` the run, or `skip` the step.
        channels_last: keeps convolutions' weights, and with them the activations, in NHWC order.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        objective: Objective,
        optimizer: Callable[[Any], Optimizer],
        lr_scheduler: Callable[[Optimizer], LRScheduler],
        ema_decay: float = 0.999,
        seed: int = 0,
        val_seed: int = 0,
        channels_last: bool = False,
        nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        objective.check(denoiser)
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)
        self.denoiser, self.objective = denoiser, objective
        self.ema = ExponentialMovingAverage(denoiser, ema_decay)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.seed, self.val_seed, self.nonfinite = seed, val_seed, nonfinite
        self._batch: Batch | None = None
        self._loss = torch.zeros(())

    def training_step(self, batch: Batch) -> Tensor:
        self._batch = batch
        torch.manual_seed(stream_seed("train", self.seed, batch.start))
        loss = self.objective(self.denoiser, to_model(batch.images), batch.labels)
        self._loss = loss.detach()
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        x_0, B = to_model(batch.images), len(batch.images)
        indices = range(batch.start, batch.start + B)
        losses = self.objective.on_fixed_noise(self.ema.model, x_0, indices, self.val_seed, batch.labels)
        self.log("val/loss", losses.mean(), batch_size=B, sync_dist=True, prog_bar=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser, step)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the global norm, and logs it as it was before.

        Lightning refuses to clip for a fused optimizer under any mixed precision; that is needed just where a
        gradient scaler is in play (16-mixed), so there its own method stays in charge.
        """
        if self.trainer.precision == "16-mixed" or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        norm = nn.utils.clip_grad_norm_(self.denoiser.parameters(), gradient_clip_val or float("inf"))
        if not (norm + self._loss).isfinite():  # the norm is the same on every rank: gradients are averaged by now
            if self.nonfinite == "stop":
                raise Diverged(self._what_diverged())
            optimizer.zero_grad()
            print(f"step {self.global_step + 1}: {self._what_diverged()}; skipped", file=sys.stderr)
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/grad_norm", norm)

    @torch.no_grad()
    def _what_diverged(self) -> str:
        """The items of the last batch whose loss is not finite, drawn once more as they were."""
        batch = self._batch
        assert batch is not None
        torch.manual_seed(stream_seed("train", self.seed, batch.start))
        with self.trainer.precision_plugin.forward_context():
            times, losses = self.objective.draw(self.denoiser, to_model(batch.images), batch.labels)
        bad = [i for i, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
        if not bad:
            return f"a gradient is not finite, though every loss of images {batch.start} … of the order is"
        told = ", ".join(f"image {batch.start + i} of the order at t = {float(times.t[i]):g}" for i in bad[:3])
        return f"the loss of {told}{' …' if len(bad) > 3 else ''} is not finite"

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.denoiser.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }
