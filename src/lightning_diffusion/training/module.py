"""The LightningModule: where a batch meets the objective."""

import sys
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_diffusion.checkpoints import format
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.continuous_bound import continuous_bound
from lightning_diffusion.diffusion.denoiser import Compile, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import Clip
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise, spread, stream_seed
from lightning_diffusion.diffusion.objective import HeldOut, Objective
from lightning_diffusion.metrics.sample_mean import SampleMean
from lightning_diffusion.training.ema import ExponentialMovingAverage
from lightning_diffusion.training.guard import BatchRecord, Diverged, Skips, Step
from lightning_diffusion.training.loggers.csv import is_log_step
from lightning_diffusion.training.sharding import align_gradients, shard, unshard


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
        nonfinite: what to do where a loss or gradient is inf or NaN: `stop` the run, or `skip` the step. A run stops
            too when it has skipped more than half of its last hundred steps.
        channels_last: keeps convolutions' weights, and with them the activations, in NHWC order.
        compile: the trained network, in place, with CUDA graphs or without; validation and samples run the averaged
            one as it is.
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
        compile: Compile = False,
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
        self._batches: list[BatchRecord] = []  # of the step under way
        self._unread: Step | None = None
        self._skips = Skips()
        self._bits = SampleMean()
        self._aligned = False  # the gradients, for DDP

    def configure_model(self) -> None:
        """Shares the trained network out over the devices of trainer=fsdp; compiles it."""
        backbone = self.denoiser.backbone
        if self.device_mesh is not None and not isinstance(backbone, FSDPModule):
            shard(backbone, self.device_mesh)
        elif distributed.is_initialized() and not self._aligned:
            align_gradients(self.denoiser)
            self._aligned = True
        self.denoiser.compile_backbone(self.compiled)

    def training_step(self, batch: Batch) -> Tensor:
        times, losses = self.objective.draw(self.denoiser, to_model(batch.images), batch.labels, self._draws(batch))
        loss = self.objective.mean(times, losses)
        self._batches.append(BatchRecord(batch.start, loss.detach(), times.t, losses.detach()))
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/loss", loss, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch) -> HeldOut:  # type: ignore[override]  # for callbacks, not for Lightning
        x_0, B = to_model(batch.images), len(batch.images)
        indices = range(batch.start, batch.start + B)
        held_out = self.objective.on_fixed_noise(self.ema.model, x_0, indices, self.val_seed, batch.labels)
        self.log("val/loss", held_out.loss.mean(), batch_size=B, sync_dist=True, prog_bar=True)
        self._bits.add(self._bits_per_dim(x_0, indices, batch.labels))
        return held_out

    def on_validation_epoch_end(self) -> None:
        self._bits.sums = self.trainer.strategy.reduce(self._bits.sums, reduce_op="sum")
        self.log("val/bits_per_dim", self._bits.mean, sync_dist=True, prog_bar=True)
        self.log("val/bits_per_dim_se", self._bits.standard_error, sync_dist=True)

    def _bits_per_dim(self, x_0: Tensor, indices: range, labels: Tensor | None) -> Tensor:
        """The bound of each image, (B,): it does not depend on the schedule or on what the network predicts."""
        noise = IndexedNoise(self.val_seed, indices, x_0.shape[1:], x_0.device, stream="bound")
        return continuous_bound(Clip(self.ema.model), x_0, noise, spread(indices), labels).total

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
        norm = unshard(total)
        self._leave_out_nonfinite(optimizer, norm, scaled=scaler is not None)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, total)
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/grad_norm", norm)

    def _draws(self, batch: Batch) -> BatchRNG:
        """The chance of a training batch; torch's own generator is left to the network's dropout."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        first = batch.start - rank * len(batch.images)  # of the whole batch
        torch.manual_seed(stream_seed("dropout", self.seed, batch.start))
        return BatchRNG(stream_seed("train", self.seed, first), self.device, rank, world_size)

    def _leave_out_nonfinite(self, optimizer: Optimizer, norm: Tensor, scaled: bool) -> None:
        """Raises Diverged, or drops the gradient: its norm is the same on every rank, averaged as it is by now."""
        self._stop_if_diverged()
        step, self._batches = Step(self.global_step + 1, self._batches, norm), []
        if self.nonfinite == "stop" and not scaled:
            self._unread = step
            if not self._runs_ahead:
                self._stop_if_diverged()
            return
        finite = step.gradient_is_finite
        if scaled and not finite:  # the scaler tries its luck, and leaves such steps out itself
            finite = not self.trainer.strategy.reduce_boolean_decision(not step.loss_is_finite, all=False)
        if self.nonfinite == "stop" and not (finite and step.loss_is_finite):
            raise Diverged(str(step))
        if not finite:
            optimizer.zero_grad()
            print(f"{step}; skipped", file=sys.stderr)
        self._skips.note(not finite)

    @property
    def _runs_ahead(self) -> bool:
        """Whether the host prepares the next step while this one computes, and hears of it then: a GPU that waits for
        its host stands still meanwhile."""
        return self.device.type == "cuda"

    def _stop_if_diverged(self) -> None:
        step, self._unread = self._unread, None
        if step is not None and not (step.gradient_is_finite and step.loss_is_finite):
            raise Diverged(str(step))

    def on_validation_start(self) -> None:
        self._stop_if_diverged()
        self._bits = SampleMean(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_if_diverged()
        checkpoint[format.KEY] = format.VERSION

    def on_train_end(self) -> None:
        self._stop_if_diverged()
        self._skips.check()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.denoiser.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }
