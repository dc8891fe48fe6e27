"""The LightningModule: where a batch meets the objective."""

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.noise import Draws, stream_seed
from src.diffusion.objective import HeldOut, Objective
from src.images import Batch, to_model
from src.training.ema import ExponentialMovingAverage
from src.training.loggers import is_log_step
from src.training.sharding import share_out, whole


class Diverged(RuntimeError):
    """A step whose loss or gradient is inf or NaN, taken back before it reached the weights."""


class DiffusionModule(L.LightningModule):
    """Trains a denoiser on uint8 batches and keeps the moving average that validation, sampling and users see.

    Times, noise and dropped labels of a training step are a function of (seed, position of the batch in the endless
    order), one for each image whatever the number of ranks; the network's dropout is one of (seed, position of the
    rank's first image). A resumed run draws what it would have drawn. In validation, image i always meets the same ε
    and t: losses compare between epochs and between runs.

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
        compile: compiles the trained network, in place; validation and samples run the averaged one as it is.
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
        compile: bool = False,
        nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        objective.check(denoiser)
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)
        self.denoiser, self.objective = denoiser, objective
        self.ema = ExponentialMovingAverage(denoiser, ema_decay)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.seed, self.val_seed, self.nonfinite, self.compiled = seed, val_seed, nonfinite, compile
        self._batch: Batch | None = None
        self._loss = torch.zeros(())

    def configure_model(self) -> None:
        """Shares the trained network out over the devices of trainer=fsdp; compiles it."""
        backbone = self.denoiser.backbone
        if self.device_mesh is not None and not isinstance(backbone, FSDPModule):
            share_out(backbone, self.device_mesh)
        if self.compiled:
            backbone.compile()

    def training_step(self, batch: Batch) -> Tensor:
        self._batch = batch
        loss = self.objective(self.denoiser, to_model(batch.images), batch.labels, self._draws(batch))
        self._loss = loss.detach()
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/loss", loss, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch) -> HeldOut:  # type: ignore[override]  # for callbacks, not for Lightning
        x_0, B = to_model(batch.images), len(batch.images)
        indices = range(batch.start, batch.start + B)
        held_out = self.objective.on_fixed_noise(self.ema.model, x_0, indices, self.val_seed, batch.labels)
        self.log("val/loss", held_out.loss.mean(), batch_size=B, sync_dist=True, prog_bar=True)
        return held_out

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser, step)
        if is_log_step(self.trainer, step + 1):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict({"train/lr": rate, "train/ema_decay": self.ema.decay_at(step)})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the global norm, or each value, and logs the norm as it was before.

        Lightning's own method refuses fused optimizers in 16-mixed; the scaler's `step` takes what is unscaled before.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        parameters = list(self.denoiser.parameters())
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = whole(total)
        self._leave_out_nonfinite(optimizer, norm, scaled=scaler is not None)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, total)
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/grad_norm", norm)

    def _draws(self, batch: Batch) -> Draws:
        """The chance of a training batch; torch's own generator is left to the network's dropout."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        first = batch.start - rank * len(batch.images)  # of the whole batch
        torch.manual_seed(stream_seed("dropout", self.seed, batch.start))
        return Draws(stream_seed("train", self.seed, first), self.device, rank, world_size)

    def _leave_out_nonfinite(self, optimizer: Optimizer, norm: Tensor, scaled: bool) -> None:
        """Raises Diverged, or drops the gradient: its norm is the same on every rank, averaged as it is by now."""
        finite = bool(norm.isfinite())
        if scaled and not finite:  # the scaler tries its luck, and leaves such steps out itself
            finite = not self.trainer.strategy.reduce_boolean_decision(not self._loss.isfinite(), all=False)
        if self.nonfinite == "stop" and not (finite and self._loss.isfinite()):
            raise Diverged(self._what_diverged())
        if not finite:
            optimizer.zero_grad()
            print(f"step {self.global_step + 1}: {self._what_diverged()}; skipped", file=sys.stderr)

    @torch.no_grad()
    def _what_diverged(self) -> str:
        """The items of the last batch whose loss is not finite, drawn once more as they were."""
        batch = self._batch
        assert batch is not None
        with self.trainer.precision_plugin.forward_context():
            times, losses = self.objective.draw(self.denoiser, to_model(batch.images), batch.labels, self._draws(batch))
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
