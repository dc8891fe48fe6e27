"""Scores of samples during training."""

import math
import time
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.metrics.comparison import Comparison
from lightning_diffusion.metrics.extractors.base import Extractor, Features, ImageSet, concatenate
from lightning_diffusion.metrics.scores import MIN_SAMPLES, Score, directions, names
from lightning_diffusion.models.contracts import Generator
from lightning_diffusion.runs.schema import PER_1000
from lightning_diffusion.system.progress import Phase, say
from lightning_diffusion.training.callbacks.budget import Budget
from lightning_diffusion.training.callbacks.lookup import callbacks_of, is_over
from lightning_diffusion.training.callbacks.stop import interruptible
from lightning_diffusion.training.callbacks.throughput import untimed
from lightning_diffusion.training.loggers.wandb import WandbLogger
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.ranks import RankBarrier


class BatchFeatures(NamedTuple):
    """A batch of drawn samples: the number of its first sample, its features, and the network evaluations and seconds
    that drawing it took."""

    start: int
    features: Features
    cost: int
    seconds: float


class SampleScores(L.Callback):
    """Draws samples with the averaged weights at the end of a validation and logs their distances from the training
    images. The extractor names the scores.

    A score depends on its number of samples, so the configuration fixes that number. The share of time only decides how
    often scores are measured. The last step is always measured; if a callback monitors a score, so is every validation
    that is due. The scores are a function of the weights and the configuration.

    The metrics never hold an old value: from the next step on, and at validations without a measurement, they are NaN,
    which a ModelCheckpoint ranks last. Loggers never see these NaN.

    Each rank draws its share of the samples; the scores equal those of a single device. The extractor is not part of
    the module: it is neither trained nor saved.

    Args:
        extractor: of features, any option of conf/metrics except the likelihood.
        every_n_steps: optimizer steps between measurements, each made at the next validation; 0 measures only the end.
        num_samples: None takes as many as there are held-out images, at most 1,000.
        share: share of the time since the start that measurements may take, in (0, 1]; a measurement that would exceed
            it is skipped. None skips none.
        batch_size: of the samples.
        seed: of their noise.
    """

    def __init__(
        self,
        extractor: Extractor,
        every_n_steps: int,
        num_samples: int | None = None,
        share: float | None = 0.1,
        batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        if (
            every_n_steps < 0
            or batch_size < 1
            or (num_samples or MIN_SAMPLES) < MIN_SAMPLES
            or not (share is None or 0 < share <= 1)
        ):
            raise ValueError(
                f"callbacks.scores.every_n_steps={every_n_steps}, num_samples={num_samples}, share={share}, "
                f"batch_size={batch_size}: choose every_n_steps >= 0, num_samples >= {MIN_SAMPLES} or null, "
                "0 < share <= 1 or null, batch_size >= 1"
            )
        self.extractor, self.seed = extractor, seed
        self.every_n_steps, self.num_samples, self.batch_size = every_n_steps, num_samples, batch_size
        self.scores: dict[str, Score] = {}
        self._comparison: Comparison | None = None
        self._floor: dict[str, Score] = {}
        self._barrier, self._budget, self._is_monitored = RankBarrier("scores"), Budget(share), False
        self._measured_step, self._fresh = 0, False
        self._how: dict[str, Any] = {}
        self._cost: dict[str, float] = {}
        self._near_copies: dict[str, dict[str, Any]] = {}

    @property
    def names(self) -> list[str]:
        """The names of the scores."""
        return names(self.extractor)

    def check(self, train: ImageSet) -> None:
        """Raises ValueError or FileNotFoundError if these images cannot be the reference of scores."""
        if len(train) < MIN_SAMPLES:
            raise ValueError(
                f"callbacks.scores: scores need at least {MIN_SAMPLES} training images, found {len(train)}; choose "
                "callbacks=default to train without scores"
            )
        self.extractor.check(train)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepares the reference images, once the run can be saved and handles signals."""
        splits = trainer.datamodule.splits  # type: ignore[attr-defined]
        if self.num_samples is None:
            self.num_samples = max(MIN_SAMPLES, min(1000, len(splits["val"])))
        with untimed(trainer), interruptible(trainer):
            self._comparison = Comparison(self.extractor, splits["train"], splits["val"], trainer.strategy.root_device)
            self._floor = self._comparison.floor(self.num_samples)
        monitored = {getattr(callback, "monitor", None) for callback in callbacks_of(trainer, L.Callback)}
        self._is_monitored = not monitored.isdisjoint(self.names)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.declare(directions(self.extractor))
        self._budget.start()
        self._announce(len(splits["train"]))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._fresh:
            self._invalidate(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self._comparison is None:
            return
        step = trainer.global_step
        if step != self._measured_step or not self.scores:
            if not self._due(trainer):
                self._invalidate(pl_module)
                return
            with self._budget.counted():
                self.scores = self._measure(trainer, pl_module)
            if step != self._measured_step:  # otherwise the run logged it before it was stopped
                self._log(trainer)
            self._measured_step = step
        self._fresh = True
        for name, score in self.scores.items():
            pl_module.log(name, score.value, logger=False)

    def state_dict(self) -> dict[str, Any]:
        return {"measured_step": self._measured_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignores the number of samples in checkpoints of earlier versions, which chose it by elapsed time."""
        self._measured_step = state_dict["measured_step"]

    def summary(self) -> dict[str, Any]:
        """The last scores and the share of near-copies, each with the value of real images, and the conditions of the
        measurement."""
        if self._comparison is None or not self.scores:
            return {}
        found = self._comparison.beside_floor(self.scores, self.num_samples or MIN_SAMPLES)
        how = {**self._how, **self._cost, "seed": self.seed, "step": self._measured_step, **self._comparison.how()}
        return {"scores": found | self._near_copies, "how": how}

    def _log(self, trainer: L.Trainer) -> None:
        """Writes to the loggers directly: values given to `log`, which can be NaN, are for callbacks only."""
        row = trainer.global_step - (trainer.state.fn == TrainerFn.FITTING)  # Lightning's number of the step just taken
        values = {name: score.value for name, score in self.scores.items()}
        values |= {f"floor/{name}": self._floor[name].value for name in values if name in self._floor}
        for logger in trainer.loggers:
            logger.log_metrics(values | {"scores/num_samples": float(self.num_samples or 0)}, row)

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether training is over, or a multiple of every_n_steps has passed since the last measurement and rank 0's
        budget allows another."""
        step, n = trainer.global_step, self.every_n_steps
        if _is_at_end(trainer):
            return True
        if n == 0 or step // n == self._measured_step // n:
            return False
        return self._is_monitored or bool(self._barrier(trainer, self._budget.allows_another())[0])

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Score]:
        assert isinstance(module, TrainingModule)
        assert isinstance(module.ema.model, Generator)
        assert self._comparison is not None
        started, model = time.monotonic(), module.ema.model
        self._how, batches = model.how(), self._own_batches(trainer)
        drawing = Phase(f"scores: drawing {self.num_samples:,} samples", model.num_steps * len(batches))
        with drawing, trainer.precision_plugin.forward_context():
            drawn = [self._features_of(model, batch, trainer, drawing) for batch in batches]
        everything = [batch for rank in self._barrier(trainer, drawn) for batch in rank]
        everything.sort(key=lambda batch: batch.start)
        features = concatenate([batch.features for batch in everything])
        with interruptible(trainer):
            found = self._comparison(features)
            if _is_at_end(trainer):  # only the summary reports them
                self._near_copies = self._comparison.near_copies(self._comparison.neighbours(features, 1))
        N = len(features.vectors)
        drawing = sum(batch.seconds for batch in everything)
        self._cost = {"nfe": sum(batch.cost for batch in everything) / N, PER_1000: 1000 * drawing / N}
        self._cost["seconds"] = time.monotonic() - started
        return found

    def _own_batches(self, trainer: L.Trainer) -> list[range]:
        assert self.num_samples is not None
        return shard_batches(self.num_samples, self.batch_size, trainer.global_rank, trainer.world_size)

    def _features_of(self, model: Generator, batch: range, trainer: L.Trainer, drawing: Phase) -> BatchFeatures:
        started = time.monotonic()
        condition = model.conditions_in_turn(batch, trainer.datamodule.splits["val"])  # type: ignore[attr-defined]
        drawn = model.draw(batch, condition, self.seed, drawing.advance)
        seconds = time.monotonic() - started
        features = self.extractor(drawn.images, trainer.strategy.root_device)
        return BatchFeatures(batch.start, features, drawn.cost, seconds)

    def _invalidate(self, module: L.LightningModule) -> None:
        """Sets the metrics to NaN: they do not belong to this step."""
        assert self._comparison is not None
        self._fresh = False
        for name in self._comparison.names:
            module.log(name, math.nan, logger=False)

    @rank_zero_only
    def _announce(self, count: int) -> None:
        assert self._comparison is not None
        notes = [f", {key} {value:.1%}" for key, value in self.extractor.note().items()]
        what = f"{self._comparison.names[0]} … of {self.num_samples:,} samples against {count:,} training images"
        say("".join(["scores: ", what, *notes]))


def _is_at_end(trainer: L.Trainer) -> bool:
    """Whether training is over; validation outside of training comes after it."""
    return is_over(trainer) or trainer.state.fn != TrainerFn.FITTING
