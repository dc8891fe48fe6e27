"""How good samples are, as training goes on."""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from src.diffusion.denoiser import Denoiser
from src.diffusion.samplers.base import Sampler
from src.metrics.comparison import Comparison
from src.metrics.extractor import Extractor, Features, ImageSet, concatenate
from src.metrics.generate import Recipe, deal
from src.metrics.scores import LEAST, Score, names
from src.progress import Phase
from src.training.module import DiffusionModule
from src.training.ranks import Meeting

Part = tuple[int, Features, int]  # number of its first sample, features, evaluations of the denoiser


class SampleScores(L.Callback):
    """Draws samples with the averaged weights at the end of a validation, and logs their distances from the training
    images under the names that the extractor gives them.

    The monitored value is never an old one: from the next step on, and at validations where nothing is measured, the
    metrics are NaN, which a ModelCheckpoint ranks last; loggers never see these. The last step is always measured.

    Each rank makes its share of the samples; the scores are those of one device. The extractor is no part of the
    module: it is neither trained nor saved.

    Args:
        extractor: of features, any option of conf/metrics but the likelihood.
        sampler, guidance: how samples are made.
        shape: (C, H, W) of an image.
        num_classes: None for an unconditional model.
        every_n_steps: optimizer steps between measurements, which wait for the next validation; 0 for the last alone.
        num_samples: None takes as many as there are held-out images, 1,000 at most.
        seconds: for the samples of one measurement; where they would take longer, fewer are made, the same number
            throughout the run.
        batch_size: of samples.
        seed: of their noise.
    """

    def __init__(
        self,
        extractor: Extractor,
        sampler: Sampler,
        guidance: Callable[[Denoiser], Denoiser],
        shape: list[int],
        num_classes: int | None,
        every_n_steps: int,
        num_samples: int | None = None,
        seconds: float = 60.0,
        batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 0 or batch_size < 1 or seconds <= 0 or (num_samples or LEAST) < LEAST:
            raise ValueError(
                f"callbacks.scores.every_n_steps={every_n_steps}, num_samples={num_samples}, seconds={seconds}, "
                f"batch_size={batch_size}: choose every_n_steps >= 0, num_samples >= {LEAST} or null, seconds > 0, "
                "batch_size >= 1"
            )
        self.extractor, self.recipe = extractor, Recipe(sampler, guidance, shape, num_classes, seed)
        self.every_n_steps, self.num_samples, self.seconds = every_n_steps, num_samples, seconds
        self.batch_size = batch_size
        self.scores: dict[str, Score] = {}
        self._comparison: Comparison | None = None
        self._meeting, self._in_budget = Meeting("scores"), False
        self._measured_step, self._fresh = 0, False
        self._nfe, self._seconds_taken = 0.0, 0.0

    @property
    def names(self) -> list[str]:
        """What the scores are reported by."""
        return names(self.extractor)

    def check(self, train: ImageSet) -> None:
        """Raises ValueError or FileNotFoundError where these images cannot be scored against."""
        if len(train) < LEAST:
            raise ValueError(
                f"callbacks.scores: {len(train)} training images, at least {LEAST} are needed; choose "
                "callbacks=default to train without scores"
            )
        self.extractor.check(train)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        splits = trainer.datamodule.splits  # type: ignore[attr-defined]
        self._comparison = Comparison(self.extractor, splits["train"], splits["val"], trainer.strategy.root_device)
        if self.num_samples is None:
            self.num_samples = max(LEAST, min(1000, len(splits["val"])))
        self._tell_reference(len(splits["train"]))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._fresh:
            self._disown(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self._comparison is None:
            return
        step = trainer.global_step
        if step != self._measured_step or not self.scores:
            if not self._due(trainer):
                self._disown(pl_module)
                return
            self.scores = self._measure(trainer, pl_module)
            self._measured_step = step
            self._log(trainer)
        self._fresh = True
        for name, score in self.scores.items():
            pl_module.log(name, score.value, logger=False)

    def state_dict(self) -> dict[str, Any]:
        return {"num_samples": self.num_samples, "in_budget": self._in_budget, "measured_step": self._measured_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_samples, self._in_budget = state_dict["num_samples"], state_dict["in_budget"]
        self._measured_step = state_dict["measured_step"]

    def summary(self) -> dict[str, Any]:
        """The last scores, each with what real images reach, and what they must be read with."""
        if self._comparison is None or not self.scores:
            return {}
        found = self._comparison.beside_floor(self.scores, self.num_samples or LEAST)
        sampler = type(self.recipe.sampler).__name__
        how = {"sampler": sampler, "nfe": self._nfe, "seed": self.recipe.seed, "seconds": self._seconds_taken}
        return {"scores": found, "how": how | {"step": self._measured_step, **self._comparison.how()}}

    def _log(self, trainer: L.Trainer) -> None:
        """To the loggers by themselves: what `log` is told, NaN too, is for callbacks alone."""
        row = trainer.global_step - (trainer.state.fn == TrainerFn.FITTING)  # Lightning's, of the step just taken
        for logger in trainer.loggers:
            logger.log_metrics({name: score.value for name, score in self.scores.items()}, row)

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether a multiple of every_n_steps has passed since the last measurement, or training is over."""
        step, n = trainer.global_step, self.every_n_steps
        over = step >= trainer.max_steps or trainer.state.fn != TrainerFn.FITTING
        return over or (n > 0 and step // n > self._measured_step // n)

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Score]:
        assert isinstance(module, DiffusionModule)
        assert self._comparison is not None
        started, parts = time.monotonic(), []
        denoiser = module.ema.model
        batches = self._deal(trainer)
        steps = len(self.recipe.sampler.times(denoiser.schedule)) * len(batches)
        drawing = Phase(f"scores: drawing {self.num_samples:,} samples", steps)
        with drawing, trainer.precision_plugin.forward_context():
            parts = [self._part(denoiser, batch, trainer, drawing) for batch in batches[:1]]
            if not self._in_budget:
                self._fit_budget(trainer, time.monotonic() - started, len(batches[0]) if batches else 0)
            parts += [self._part(denoiser, batch, trainer, drawing) for batch in self._deal(trainer)[1:]]
        everybodys = sorted(
            (part for ranks in self._meeting(trainer, parts) for part in ranks), key=lambda part: part[0]
        )
        features = concatenate([part for _, part, _ in everybodys])
        N = self.num_samples
        self._nfe = sum(cost for *_, cost in everybodys) / len(features.vectors)
        features = Features(features.vectors[:N], None if features.logits is None else features.logits[:N])
        self._seconds_taken = time.monotonic() - started
        return self._comparison(features)

    def _deal(self, trainer: L.Trainer) -> list[range]:
        assert self.num_samples is not None
        return deal(self.num_samples, self.batch_size, trainer.global_rank, trainer.world_size)

    def _part(self, denoiser: Denoiser, batch: range, trainer: L.Trainer, drawing: Phase) -> Part:
        device = trainer.strategy.root_device
        images, evaluations = self.recipe.make(denoiser, batch, device, drawing.advance)
        return batch.start, self.extractor(images, device), evaluations

    def _fit_budget(self, trainer: L.Trainer, seconds: float, count: int) -> None:
        """Once in a run: as many samples as fit, by the time that the slowest rank took for its first batch."""
        assert self.num_samples is not None
        rates = self._meeting(trainer, seconds / count if count else 0.0)
        per_sample = max(rates) / trainer.world_size
        wanted, self._in_budget = self.num_samples, True
        if wanted * per_sample > self.seconds:
            self.num_samples = max(LEAST, _one_digit(self.seconds / per_sample))
            self._tell_budget(wanted, wanted * per_sample)

    def _disown(self, module: L.LightningModule) -> None:
        """What is in the metrics is not this step's."""
        assert self._comparison is not None
        self._fresh = False
        for name in self._comparison.names:
            module.log(name, math.nan, logger=False)

    @rank_zero_only
    def _tell_reference(self, count: int) -> None:
        assert self._comparison is not None
        words = [f"scores: {self._comparison.names[0]} … against {count:,} training images"]
        words += [f"{key} {value:.1%}" for key, value in self.extractor.note().items()]
        print(", ".join(words))

    @rank_zero_only
    def _tell_budget(self, wanted: int, seconds: float) -> None:
        print(
            f"scores: {self.num_samples:,} samples each time; {wanted:,} would take about {seconds:.0f} s, more than "
            f"callbacks.scores.seconds={self.seconds:g}"
        )


def _one_digit(value: float) -> int:
    """Rounded down to one significant digit."""
    unit = 10 ** max(0, math.floor(math.log10(max(value, 1))))
    return int(value // unit * unit)
