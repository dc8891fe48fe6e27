"""The sampling times t_N > … > t_0 = 0."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from src.diffusion.schedule import NoiseSchedule


class TimeGrid(ABC):
    """Chooses the times at which a sampler calls the denoiser."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> Tensor:
        """N + 1 falling times from T to exactly 0, float64; `num_steps=None` walks every step of a discrete chain.

        Raises:
            ValueError: fewer than one step, or more steps than a discrete schedule has times.
        """
        if num_steps is None:
            num_steps = int(schedule.T)
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps={num_steps}: a sampler takes at least one step")
        times = schedule.nearest(self.times(schedule, num_steps))
        if not bool((times.diff() < 0).all()):
            raise ValueError(
                f"sampler.num_steps={num_steps} and schedule.T={schedule.T}: the schedule has too few times "
                f"for so many steps; choose sampler.num_steps <= {schedule.T}"
            )
        return times

    @abstractmethod
    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """N + 1 falling times, float64, the first T and the last 0."""


class Linear(TimeGrid):
    """t_i = T i/N. Ref: DDIM App. D.2, "linear"; the first time is T itself, so no signal is assumed there."""

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        return torch.linspace(float(schedule.T), 0, num_steps + 1, dtype=torch.float64)
