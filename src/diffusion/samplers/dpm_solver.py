"""DPM-Solver++: exponential integrators of the probability flow in the log-SNR, on x̂_0.

With λ = log(α/σ) and h = λ_s − λ_t:   x_s = σ_s/σ_t x_t + α_s (1 − e^{−h}) D ,   D built from x̂_0 at several times.
At either end of the clock λ may be infinite; there h is, and the step is of first order, x_s = σ_s/σ_t x_t + α_s D.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from src.diffusion.denoiser import Denoiser
from src.diffusion.noise import Noise
from src.diffusion.process import expand
from src.diffusion.samplers.base import Sampler
from src.diffusion.schedule import NoiseSchedule
from src.diffusion.time_grid import TimeGrid


class Point(NamedTuple):
    """x̂_0 at a time with log-SNR half λ."""

    lam: Tensor
    x_0: Tensor


def half_logsnr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """λ = log(α/σ)."""
    return schedule.logsnr(t) / 2


def advance(schedule: NoiseSchedule, x_t: Tensor, D: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """σ_s/σ_t x_t + α_s (1 − e^{−h}) D, written without h so that its ends need no limit."""
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return expand(ratio, x_t) * x_t + expand(schedule.alpha(s) - schedule.alpha(t) * ratio, x_t) * D


class DPMSolverMultistep(Sampler):
    """DPM-Solver++(1), (2M), (3M): one evaluation a step, earlier ones reused.

    Args:
        order: 1, 2 or 3; the first steps, and the last, are of lower order.

    The weight of the third-order term is twice that of the published code (and of diffusers'), where D_2, a divided
    difference, stands in for a derivative that is twice as large: measured on a Gaussian, theirs converges at order 2.

    Ref: DPM-Solver++ Alg. 2 for 2M
    """

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 20, order: int = 2) -> None:
        super().__init__(num_steps, time_grid)
        if order not in (1, 2, 3):
            raise ValueError(f"sampler.order={order}: choose 1, 2 or 3")
        self.order = order

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: list[Point] | None
    ) -> tuple[Tensor, list[Point]]:
        schedule = denoiser.schedule
        now = Point(half_logsnr(schedule, t), denoiser(x_t, t))
        points = [now, *(state or [])][: self.order]
        h = half_logsnr(schedule, s) - now.lam
        usable = [p for p in points if torch.isfinite(p.lam)] if torch.isfinite(h) else []
        x_s = advance(schedule, x_t, now.x_0, t, s)
        if len(usable) >= 2:
            D1 = (usable[0].x_0 - usable[1].x_0) / expand((usable[0].lam - usable[1].lam) / h, x_t)
            decay, alpha_s = torch.expm1(-h), schedule.alpha(s)
            if len(usable) == 2:
                x_s = x_s - expand(alpha_s * decay / 2, x_t) * D1
            else:
                r_0, r_1 = (usable[0].lam - usable[1].lam) / h, (usable[1].lam - usable[2].lam) / h
                D1_before = (usable[1].x_0 - usable[2].x_0) / expand(r_1, x_t)
                bend = (D1 - D1_before) / expand(r_0 + r_1, x_t)
                D1 = D1 + expand(r_0, x_t) * bend
                x_s = x_s + expand(alpha_s * (decay / h + 1), x_t) * D1
                x_s = x_s - expand(alpha_s * (2 * (decay + h) / h**2 - 1), x_t) * bend
        return x_s, points


class DPMSolverSinglestep(Sampler):
    """DPM-Solver++(2S): a half step in λ first, then the whole one with its slope; two evaluations a step.

    Ref: DPM-Solver++ Alg. 1 with r = ½
    """

    order = 2
    evaluations = 2

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 10) -> None:
        super().__init__(num_steps, time_grid)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        schedule, x_0 = denoiser.schedule, denoiser(x_t, t)
        middle = (half_logsnr(schedule, t) + half_logsnr(schedule, s)) / 2
        if not torch.isfinite(middle):
            return advance(schedule, x_t, x_0, t, s), None
        r = schedule.t_of_logsnr(2 * middle)
        x_0_middle = denoiser(advance(schedule, x_t, x_0, t, r), r)
        return advance(schedule, x_t, x_0_middle, t, s), None


class DPMSolverSDE(Sampler):
    """SDE-DPM-Solver++(2M): x_s = σ_s/σ_t e^{−h} x_t + α_s (1 − e^{−2h}) (D + D_1/2) + σ_s √(1 − e^{−2h}) z.

    Ref: DPM-Solver++ Eq. 18 and App. for the SDE form of 2M
    """

    stochastic = True

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 20) -> None:
        super().__init__(num_steps, time_grid)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Point | None
    ) -> tuple[Tensor, Point]:
        schedule = denoiser.schedule
        now = Point(half_logsnr(schedule, t), denoiser(x_t, t))
        h = half_logsnr(schedule, s) - now.lam
        lost = -torch.expm1(-2 * h)  # 1 − e^{−2h}
        D = now.x_0
        if state is not None and torch.isfinite(h) and torch.isfinite(state.lam):
            D = D + (now.x_0 - state.x_0) / expand(2 * (now.lam - state.lam) / h, x_t)
        kept = schedule.sigma(s) / schedule.sigma(t) * torch.exp(-h)
        mean = expand(kept, x_t) * x_t + expand(schedule.alpha(s) * lost, x_t) * D
        return mean + expand(schedule.sigma(s) * lost.sqrt(), x_t) * noise(), now
