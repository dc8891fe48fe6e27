"""The LightningModule, which connects a model and its objective to Lightning's training loop."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_diffusion.checkpoints import format
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG, stream_seed
from lightning_diffusion.metrics.instances import AveragePrecision
from lightning_diffusion.metrics.sample_mean import SampleMean
from lightning_diffusion.metrics.segmentation import ConfusionMatrix, measured
from lightning_diffusion.models.contracts import Compile, HeldOut, Likelihood, Model, Objective, Predictor, Training
from lightning_diffusion.training.ema import ExponentialMovingAverage
from lightning_diffusion.training.guard import BatchRecord, Guard
from lightning_diffusion.training.loggers.csv import is_log_step
from lightning_diffusion.training.sharding import align_gradients, shard, unshard

T = TypeVar("T")


class TrainingModule(L.LightningModule):
    """Trains a model by an objective on uint8 batches. Validation, samples and scores use the moving average of its
    weights.

    The random draws of a training step are a function of (seed, position of the batch in the endless order), and each
    image's draws do not depend on the number of ranks. The network's dropout is a function of (seed, position of the
    rank's first image). A resumed run repeats the draws of an uninterrupted one. In validation, image i always gets the
    same draws, so that results compare between epochs and between runs.

    Logs train/loss, the objective's other figures of a training batch, train/lr, train/grad_norm and train/ema_decay at
    the steps that loggers write, counted from 1. Each validation logs val/loss and the objective's other figures of the
    averaged weights, val/bits_per_dim with its standard error if the model has a likelihood, the scores of
    `ConfusionMatrix`, such as val/mean_iou, if it predicts masks, and those of `AveragePrecision` if it has instances.

    Args:
        model: the model to train.
        objective: its training objective.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> scheduler, stepped once per optimizer step.
        ema_decay: see `ExponentialMovingAverage`.
        seed: of the random draws in training.
        val_seed: of the random draws in validation, the same in every run.
        channels_last: keeps the weights of convolutions, and thereby the activations, in NHWC order.
        compile: compiles the trained network; "reduce-overhead" replays it as CUDA graphs.
        nonfinite: "stop" raises Diverged at a step whose loss or gradient is inf or NaN, "skip" skips the step. With
            either, a loss scaler (16-mixed) skips steps of which only the gradient is not finite.

    Raises:
        ValueError: the objective cannot train this model.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        lr_scheduler: Callable[[Optimizer], LRScheduler],
        ema_decay: float = 0.999,
        seed: int = 0,
        val_seed: int = 0,
        channels_last: bool = False,
        compile: Compile = False,
        nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        objective.check(model)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.objective = model, objective
        self.ema = ExponentialMovingAverage(model, ema_decay, model.shared)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.seed, self.val_seed, self.compiled = seed, val_seed, compile
        self._guard, self._bits = Guard(nonfinite), SampleMean()
        self._confusion: ConfusionMatrix | None = None
        self._precision: AveragePrecision | None = None
        self._aligned = False  # whether DDP's gradients are

    @property
    def skips_nonfinite(self) -> bool:
        """Whether the run skips steps that are not finite; otherwise they end it."""
        return self._guard.policy == "skip"

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer updates: the model's and the objective's."""
        return [*self.model.parameters(), *self.objective.parameters()]

    def configure_model(self) -> None:
        """Shards the trained network over the devices of trainer=fsdp, and compiles it."""
        network = self.model.network
        if self.device_mesh is not None and not isinstance(network, FSDPModule):
            shard(network, self.device_mesh)
        elif distributed.is_initialized() and not self._aligned:
            align_gradients(self.trained)
            self._aligned = True
        self.model.compile_network(self.compiled)

    def training_step(self, batch: Batch) -> Tensor:
        training = Training(self.global_step / max(1, self.trainer.max_steps), self.ema.model)
        losses = self.objective.loss(self.model, batch, self._rng(batch), training)
        loss = losses.values.mean()
        self._guard.add(BatchRecord(batch.start, loss.detach(), losses.values.detach(), losses.drawn))
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/loss", loss, sync_dist=True, prog_bar=True)
            for name, values in losses.figures.items():
                self.log(f"train/{name}", values.mean(), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch) -> HeldOut:  # type: ignore[override]  # for callbacks, not for Lightning
        model, B = self.ema.model, len(batch.images)
        indices = range(batch.start, batch.start + B)
        held_out = self.objective.held_out(model, batch, indices, self.val_seed)
        for name, values in held_out.figures.items():
            self.log(f"val/{name}", values.mean(), batch_size=B, sync_dist=True, prog_bar=name == "loss")
        if isinstance(model, Likelihood):
            self._bits.add(model.bits_per_dim(batch.images, batch.condition, indices, self.val_seed))
        if isinstance(model, Predictor) and self._confusion is not None and batch.targets is not None:
            self._confusion.add(model.predict(batch.images), batch.targets)
            if self._precision is not None and batch.instances is not None:
                self._precision.add(indices, model.instances(batch.images), batch.instances, batch.targets)
        return held_out

    def on_validation_epoch_end(self) -> None:
        if isinstance(self.model, Likelihood):
            self._bits.sums = self.trainer.strategy.reduce(self._bits.sums, reduce_op="sum")
            self.log("val/bits_per_dim", self._bits.mean, sync_dist=True, prog_bar=True)
            self.log("val/bits_per_dim_se", self._bits.standard_error, sync_dist=True)
        if self._confusion is not None:
            self._confusion.counts = self.trainer.strategy.reduce(self._confusion.counts, reduce_op="sum")
            for name, score in measured(self._confusion.scores()).items():
                self.log(f"val/{name}", score, sync_dist=True, prog_bar=name == "mean_iou")
        if self._precision is not None:
            self._precision.parts = self._of_all_ranks(self._precision.parts)
            for name, score in measured(self._precision.scores()).items():
                self.log(f"val/{name}", score, sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.model, step)
        if is_log_step(self.trainer, step + 1):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict({"train/lr": rate, "train/ema_decay": self.ema.decay_at(step)})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the global norm, or each value, and logs the norm before clipping.

        Lightning's own method refuses fused optimizers in 16-mixed. The scaler's `step` accepts gradients that are
        already unscaled.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        parameters = self.trained
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = unshard(total)
        if not self._guard.admits(self.global_step + 1, norm, scaler is not None, self._runs_ahead, self._any_rank):
            optimizer.zero_grad()
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, total)
        if is_log_step(self.trainer, self.global_step + 1):
            self.log("train/grad_norm", norm)

    def _rng(self, batch: Batch) -> BatchRNG:
        """The chance of a training batch; torch's own generator is left to the network's dropout."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        first = batch.start - rank * len(batch.images)  # of the whole batch
        seed = stream_seed("dropout", self.seed, batch.start)
        if self.device.type == "cpu":  # torch.manual_seed prepares absent GPUs too, which takes milliseconds
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        return BatchRNG(self.seed, first, self.device, rank, world_size)

    @property
    def _runs_ahead(self) -> bool:
        """Whether the host prepares the next step while the device computes this one."""
        return self.device.type == "cuda"

    def _any_rank(self, decision: bool) -> bool:
        return self.trainer.strategy.reduce_boolean_decision(decision, all=False)

    def on_validation_start(self) -> None:
        self._guard.check()
        self._bits = SampleMean(self.device)
        classes = self.model.mask_classes if isinstance(self.model, Predictor) else None
        self._confusion = None if classes is None else ConfusionMatrix(classes, self.device)
        has_instances = isinstance(self.model, Predictor) and self.model.has_instances
        self._precision = AveragePrecision(classes) if classes is not None and has_instances else None

    def _of_all_ranks(self, parts: list[T]) -> list[T]:
        """The parts of every rank, in rank order."""
        if self.trainer.world_size == 1:
            return parts
        gathered: list[list[T]] = [[]] * self.trainer.world_size
        distributed.all_gather_object(gathered, parts)
        return [part for of_rank in gathered for part in of_rank]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._guard.check()
        checkpoint[format.KEY] = format.VERSION

    def on_train_end(self) -> None:
        self._guard.finish()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }
