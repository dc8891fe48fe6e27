"""UniPC: a predictor and a corrector of one form, one evaluation a step."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.dpm_solver import Point, advance, half_logsnr, single_step
from lightning_diffusion.diffusion.schedule import NoiseSchedule
from lightning_diffusion.diffusion.time_grid import TimeGrid


class State(NamedTuple):
    """Where the last step began: x, or None where the step needs no correction, its time, and x̂_0 there and before,
    the newest first."""

    x: Tensor | None
    t: Tensor
    points: list[Point]


class UniPC(Sampler):
    """x_s = σ_s/σ_t x_t + α_s (1 − e^{−h}) (D_0 + Σ_m ρ_m D_m/r_m), with B(h) = e^{−h} − 1 (bh2), on x̂_0.

    The predictor's ρ uses the last `order` values of x̂_0. When the next step has evaluated x̂_0 at the predicted x_s,
    the corrector takes the same step again with that value among them, and the order rises by one at no cost.

    With a predictor of order 3 the first step is DPM-Solver++(3S)'s, with two evaluations in addition: UniPC's own
    would leave an error of third order, even when corrected.

    Args:
        order: of the predictor, 1 … 3; with the corrector the sampler's is one more. The last step is of first order.

    Ref: UniPC Alg. 1–2, Theorem 3.1
    """

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 10, order: int = 2) -> None:
        super().__init__(time_grid, num_steps)
        if order not in (1, 2, 3):
            raise ValueError(f"sampler.order={order}: choose 1, 2 or 3")
        self.points, self.order = order, order + 1
        self.start_evaluations = 2 if order == 3 else 0

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: State | None
    ) -> tuple[Tensor, State]:
        schedule = denoiser.schedule
        now = Point(half_logsnr(schedule, t), denoiser(x_t, t))
        points = [now]
        if state is not None:
            if state.x is not None:
                x_t = unified_step(schedule, state.x, state.t, t, state.points, corrector=now)
            points = [now, *state.points][: self.points]
        usable = sum(bool(torch.isfinite(p.lam)) for p in points)
        if usable < self.order - 2:
            return single_step(denoiser, x_t, now.x_0, t, s, self.order - 1), State(None, t, points)
        return unified_step(schedule, x_t, t, s, points), State(x_t, t, points)


def unified_step(
    schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor, points: list[Point], corrector: Point | None = None
) -> Tensor:
    """The predictor's step from t to s, or the corrector's, which knows x̂_0 at s too."""
    x_s = advance(schedule, x, points[0].x_0, t, s)
    h = half_logsnr(schedule, s) - points[0].lam
    others = [p for p in [*points[1:], *([corrector] if corrector else [])] if torch.isfinite(p.lam)]
    if not torch.isfinite(h) or not others:
        return x_s
    r = torch.stack([(p.lam - points[0].lam) / h for p in others])
    total = sum(
        rho / r_m * (p.x_0 - points[0].x_0) for rho, r_m, p in zip(unified_weights(r, h), r, others, strict=True)
    )
    return x_s - schedule.alpha(s) * torch.expm1(-h) * total


def unified_weights(r: Tensor, h: Tensor) -> Tensor:
    """ρ of Σ_m ρ_m r_m^{k−1} = k! φ_{k+1}(−h)/B(h), k = 1 … len(r); ½ where there is one.

    φ_{k+1}(z) = (φ_k(z) − 1/k!)/z, φ_1(z) = (e^z − 1)/z.  Ref: UniPC Eq. 5, Theorem 3.1 and, for the ½, App. on order 2
    """
    if len(r) == 1:
        return r.new_tensor([0.5])
    B = torch.expm1(-h)
    phi, factorial, b = B / -h - 1, 1.0, []
    for k in range(1, len(r) + 1):
        b.append(phi * factorial / B)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = torch.arange(len(r), dtype=r.dtype)
    return torch.linalg.solve(r[None, :] ** powers[:, None], torch.stack(b))
