"""The sampling times t_N > … > t_0 = 0."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_diffusion.diffusion.schedule import NoiseSchedule


class TimeGrid(ABC):
    """Chooses the times at which a sampler calls the denoiser."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> Tensor:
        """Return N + 1 decreasing times, the first at most T and the last exactly 0, float64.

        Args:
            num_steps: N ≥ 1; None takes every step of a discrete chain, T, T − 1, …, 0, on any grid.

        Raises:
            ValueError: more steps than a discrete schedule has times, or None for a continuous schedule.
        """
        if num_steps is None:
            return schedule.chain("sampler.num_steps=null", "give sampler.num_steps a number")
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps={num_steps}: choose at least 1")
        times = self.times(schedule, num_steps)
        if not bool((times.diff() < 0).all()):
            raise ValueError(
                f"sampler.num_steps={num_steps} and schedule.T={schedule.T:g}: the schedule has too few times for "
                f"this many steps; choose sampler.num_steps <= {schedule.T:g}"
            )
        return times

    @abstractmethod
    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return N + 1 decreasing times, float64, the last 0."""


class Trailing(TimeGrid):
    """T (1 − i/N): even steps from T itself down to 0. Ref: Common Diffusion Noise Schedules … Are Flawed, Table 2"""

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        return schedule.nearest(float(schedule.T) * _shares(num_steps))


class Leading(TimeGrid):
    """Even steps that start below T and end at the first time: ⌊T/N⌋ i + 1, then 0. Ref: DDIM's code, "uniform" """

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        below = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64) * schedule.spacing(num_steps)
        below = below + schedule.t_min
        return torch.cat([below, below.new_zeros(1)])


class Linear(TimeGrid):
    """Even steps from T to the first time, both included, then 0: numpy's linspace over the training times."""

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        return _then_zero(
            schedule.nearest(torch.linspace(float(schedule.T), schedule.t_min, num_steps, dtype=torch.float64))
        )


class Quadratic(TimeGrid):
    """T (1 − i/N)²: denser near the data. Ref: DDIM App. D.2"""

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        return schedule.nearest(float(schedule.T) * _shares(num_steps) ** 2)


class Karras(TimeGrid):
    """σ̃_i = (σ_max^{1/ρ} + i/(N − 1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ in σ̃ = σ/α, then 0.

    Args:
        rho: ρ > 0; EDM uses 7.
        sigma_min, sigma_max: the ends; None takes the schedule's first and last noise level.

    Raises:
        ValueError: a schedule that ends without signal, where σ̃ is infinite, and no sigma_max.

    Ref: EDM Eq. 5
    """

    def __init__(self, rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        if rho <= 0:
            raise ValueError(f"time_grid.rho={rho}: choose rho > 0 (EDM uses 7)")
        self.rho, self.sigma_min, self.sigma_max = rho, sigma_min, sigma_max

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        first, last = _levels(schedule)
        high, low = self.sigma_max or last, self.sigma_min or first
        if not math.isfinite(high):
            raise ValueError(
                "time_grid=karras and schedule: the schedule ends without signal, at an infinite σ/α; "
                "give time_grid.sigma_max, or choose time_grid=trailing"
            )
        ends = torch.tensor([min(high, last), low], dtype=torch.float64) ** (1 / self.rho)
        levels = torch.lerp(ends[0], ends[1], 1 - _shares_with_ends(num_steps)) ** self.rho
        return _then_zero(schedule.t_of_logsnr(-2 * levels.log()).clamp(max=float(schedule.T)))


class LogSNR(TimeGrid):
    """Even steps in λ from the last to the first noise level, then 0. Ref: DPM-Solver §3.3

    If the schedule ends without signal, where λ is infinite, the steps are even from 0.999 T, and the first time is T.
    """

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        T, t_min = (torch.tensor(float(t), dtype=torch.float64) for t in (schedule.T, schedule.t_min))
        start = T if schedule.terminal_snr() > 0 else T * 0.999
        lambdas = torch.lerp(schedule.logsnr(start), schedule.logsnr(t_min), 1 - _shares_with_ends(num_steps))
        times = schedule.t_of_logsnr(lambdas)
        times[0] = T
        return _then_zero(times)


def _shares(num_steps: int) -> Tensor:
    """1 − i/N, i = 0 … N."""
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def _shares_with_ends(num_points: int) -> Tensor:
    """1 − i/(N − 1), i = 0 … N − 1; only 1 for N = 1."""
    return torch.linspace(1, 0, num_points, dtype=torch.float64)


def _then_zero(times: Tensor) -> Tensor:
    return torch.cat([times, times.new_zeros(1)])


def _levels(schedule: NoiseSchedule) -> tuple[float, float]:
    """σ/α at the first and the last time."""
    t = torch.tensor([float(schedule.t_min), float(schedule.T)], dtype=torch.float64)
    first, last = (schedule.sigma(t) / schedule.alpha(t)).tolist()
    return first, last
