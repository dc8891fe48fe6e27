"""Denoising as a training objective."""

from typing import Any

from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion import objective
from lightning_diffusion.diffusion.continuous_bound import span
from lightning_diffusion.diffusion.distance import Distance
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.time_sampler import TimeSampler
from lightning_diffusion.diffusion.weighting import Weighting
from lightning_diffusion.models import contracts
from lightning_diffusion.models.contracts import HeldOut, Losses, Training
from lightning_diffusion.models.diffusion.model import DiffusionModel


class Denoising(objective.Objective, contracts.Objective):
    """The denoising loss of a `DiffusionModel`; see `diffusion.objective` for its equation and its other arguments.

    Args:
        condition_noise: s_max in [0, 1). In training the condition's image gets noise of a level s ~ U[0, s_max), see
            `Condition.noised`. Validation uses the model's level.

    Ref: Cascaded Diffusion Models §4.2 (non-truncated conditioning augmentation)
    """

    def __init__(
        self,
        time_sampler: TimeSampler,
        weighting: Weighting,
        distance: objective.DistanceName | Distance = "squared",
        vlb_weight: float = 0.0,
        condition_noise: float = 0.0,
    ) -> None:
        super().__init__(time_sampler, weighting, distance, vlb_weight)
        if not 0 <= condition_noise < 1:
            raise ValueError(f"objective.condition_noise={condition_noise}: choose 0 <= condition_noise < 1")
        self.condition_noise = condition_noise

    def check(self, model: DiffusionModel) -> None:
        largest = max(self.condition_noise, model.condition_noise)
        if largest > 0 and model.condition_source is None:
            key = "objective" if self.condition_noise else "model"
            raise ValueError(
                f"{key}.condition_noise={largest}: there is no image to add noise to; give condition=low_resolution or "
                f"another, or choose {key}.condition_noise=0"
            )
        if model.condition_noise > self.condition_noise:
            raise ValueError(
                f"model.condition_noise={model.condition_noise} and objective.condition_noise={self.condition_noise}: "
                "drawing adds more noise to the condition than training; choose objective.condition_noise at least as "
                "large"
            )
        self.check_denoiser(model.denoiser)
        span(model.denoiser.schedule)  # validation measures the bound on it

    def loss(self, model: DiffusionModel, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        condition = self._noised(batch.condition, rng)
        times, losses = self.draw(model.denoiser, model.codec.encode(batch.images), condition, rng)
        return Losses(self.weighted(times, losses), {"t": times.t})

    def held_out(self, model: DiffusionModel, batch: Batch, indices: range, seed: int) -> HeldOut:
        x_0 = model.codec.encode(batch.images)
        condition = model.noised(batch.condition, indices, seed)
        found = self.on_fixed_noise(model.denoiser, x_0, indices, seed, condition)
        return HeldOut({"loss": found.loss}, found.time, found.error)

    def _noised(self, condition: Condition | None, rng: BatchRNG) -> Condition | None:
        if condition is None or condition.image is None or self.condition_noise == 0:
            return condition
        level = self.condition_noise * rng.uniform(len(condition))
        return condition.noised(level, rng.normal(condition.image[:, :-1]))

    def at_times(self, model: DiffusionModel, times: Tensor) -> dict[str, list[float]]:
        schedule = model.denoiser.schedule
        logsnr: Any = schedule.logsnr(times.double() * schedule.T).tolist()
        return {"logsnr": logsnr}
