"""The LightningModule: where a batch meets the objective."""

from collections.abc import Callable
from typing import Any

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
    ) -> None:
        super().__init__()
        objective.check(denoiser)
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)
        self.denoiser, self.objective = denoiser, objective
        self.ema = ExponentialMovingAverage(denoiser, ema_decay)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.seed, self.val_seed = seed, val_seed

    def training_step(self, batch: Batch) -> Tensor:
        torch.manual_seed(stream_seed("train", self.seed, batch.start))
        loss = self.objective(self.denoiser, to_model(batch.images), batch.labels)
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
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/grad_norm", norm)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.denoiser.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }
