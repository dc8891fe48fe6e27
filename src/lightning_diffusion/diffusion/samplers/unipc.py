"""UniPC: a predictor and a corrector of the same form, one evaluation per step."""

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
    """The start of the previous step: x (None if the step needs no correction), its time, and the last estimates x̂_0,
    newest first."""

    x: Tensor | None
    t: Tensor
    points: list[Point]


class UniPC(Sampler):
    """x_s = σ_s/σ_t x_t + α_s (1 − e^{−h}) (D_0 + Σ_m ρ_m D_m/r_m), with B(h) = e^{−h} − 1 (bh2), on x̂_0.

    The predictor uses the last `order` values of x̂_0. Once the next step has evaluated x̂_0 at the predicted x_s, the
    corrector repeats the step with that value included. This raises the order by one at no cost.

    With order=3 the first step is a step of DPM-Solver++(3S), which costs two extra evaluations. UniPC's own first step
    would leave a third-order error even when corrected.

    Args:
        order: of the predictor, 1 … 3; the corrector adds one. The last step is first order.

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
    """Take the predictor's step from t to s, or the corrector's, which also uses x̂_0 at s."""
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
    """Solve Σ_m ρ_m r_m^{k−1} = k! φ_{k+1}(−h)/B(h), k = 1 … len(r), for ρ; a single ρ is ½.

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
