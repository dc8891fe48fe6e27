"""Denoising as a training objective."""

from typing import Any

from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion import objective
from lightning_diffusion.diffusion.continuous_bound import span
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models import contracts
from lightning_diffusion.models.contracts import HeldOut, Losses, Training
from lightning_diffusion.models.diffusion.model import DiffusionModel


class Denoising(objective.Objective, contracts.Objective):
    """The denoising loss of a `DiffusionModel`; see `diffusion.objective` for its equation and arguments."""

    def check(self, model: DiffusionModel) -> None:
        self.check_denoiser(model.denoiser)
        span(model.denoiser.schedule)  # validation measures the bound on it

    def loss(self, model: DiffusionModel, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        condition = _noised(model, batch.condition, rng)
        times, losses = self.draw(model.denoiser, model.codec.encode(batch.images), condition, rng)
        return Losses(self.weighted(times, losses), {"t": times.t})

    def held_out(self, model: DiffusionModel, batch: Batch, indices: range, seed: int) -> HeldOut:
        x_0 = model.codec.encode(batch.images)
        condition = model.noised(batch.condition, indices, seed)
        found = self.on_fixed_noise(model.denoiser, x_0, indices, seed, condition)
        return HeldOut({"loss": found.loss}, found.time, found.error)

    def at_times(self, model: DiffusionModel, times: Tensor) -> dict[str, list[float]]:
        schedule = model.denoiser.schedule
        logsnr: Any = schedule.logsnr(times.double() * schedule.T).tolist()
        return {"logsnr": logsnr}


def _noised(model: DiffusionModel, condition: Condition | None, rng: BatchRNG) -> Condition | None:
    """The condition with noise of a level s ~ U[0, max_noise) on each image.

    Ref: Cascaded Diffusion Models §4.2 (non-truncated conditioning augmentation)
    """
    source = model.condition_source
    if source is None or source.max_noise == 0 or condition is None or condition.image is None:
        return condition
    level = source.max_noise * rng.uniform(len(condition))
    return condition.noised(level, rng.normal(condition.image[:, :-1]))
