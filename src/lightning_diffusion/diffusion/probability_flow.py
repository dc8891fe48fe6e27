"""The probability flow, an ODE that carries noise to data and back, and its adaptive solution.

In polar coordinates α = r cos θ, σ = r sin θ every schedule has the same flow, finite at both ends: of y = x_t/r,

    dy/dθ = ε̂ cos θ − x̂_0 sin θ = (y cos θ − x̂_0)/sin θ

Ref: score-SDE Eq. 13 and DDIM Eq. 14, in the angle of Progressive Distillation App. D
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.schedule import NoiseSchedule

# Dormand & Prince's pair of orders 5 and 4, RK5(4)7M. The last row of A is the solution of order 5.
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 less order 4
SHORTEST = 1e-4  # step, of the whole way: a slope that jumps must not stop the walk

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]


def angle(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """θ = atan2(σ, α), from 0 at the data to at most π/2, float64."""
    t = t.double()
    return torch.atan2(schedule.sigma(t), schedule.alpha(t))


def time_of(schedule: NoiseSchedule, theta: Tensor) -> Tensor:
    """t(θ), through the log-SNR −2 log tan θ."""
    return schedule.t_of_logsnr(-2 * theta.tan().log())


def radius(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """r = √(α² + σ²)."""
    return torch.hypot(schedule.alpha(t), schedule.sigma(t))


def velocity(y: Tensor, x0_hat: Tensor, theta: Tensor) -> Tensor:
    """dy/dθ. y, x0_hat: (B, …); theta: (B,)."""
    return (expand(theta.cos(), y) * y - x0_hat) / expand(theta.sin(), y)


def transport(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, tolerance: float) -> Tensor:
    """x_s on the flow through x_t, each item to the tolerance and independent of the others.

    Args:
        denoiser: with its condition filled in.
        x_t: (B, C, H, W).
        t, s: float64 scalars in (0, T], s before or after t.
        tolerance: of the local error, relative to 1 + |y|.
    """
    schedule, shape = denoiser.schedule, x_t.shape[1:]

    def slope(y: Tensor, theta: Tensor, items: Tensor) -> Tensor:
        now, image = time_of(schedule, theta), y.unflatten(1, shape)
        x_0 = denoiser.of(items)(expand(radius(schedule, now), image) * image, now)
        return velocity(image, x_0, theta).flatten(1)

    start, end = (float(angle(schedule, time)) for time in (t, s))
    y = solve(slope, (x_t / expand(radius(schedule, t), x_t)).flatten(1), start, end, tolerance)
    return expand(radius(schedule, s), x_t) * y.unflatten(1, shape)


def solve(slope: Slope, y: Tensor, start: float, end: float, tolerance: float) -> Tensor:
    """y(end) of dy/dθ = slope(y, θ, items), by Dormand and Prince's method with a step size for each item.

    So an item's solution does not depend on which others it is solved with, and none waits for the hardest.

    Args:
        slope: of some of the items: y (b, n), θ (b,), and which items they are, (b,) -> (b, n).
        y: (B, n).
    """
    span = end - start
    theta = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
    step = torch.full_like(theta, 0.05 * span)
    y, items = y.clone(), torch.arange(len(y), device=y.device)
    first = slope(y, theta, items)  # of each item's step; the last stage of a step is the first of the next
    while len(items):
        h, here, at = step[items], y[items], theta[items]
        h = torch.where((at + h - end) * math.copysign(1, span) > 0, end - at, h)
        stages = [first[items]]
        for row, c in zip(A, C, strict=True):
            there = here + expand(h, here) * sum(a * k for a, k in zip(row, stages, strict=True))
            stages.append(slope(there, at + c * h, items))
        wrong = expand(h, here) * sum(e * k for e, k in zip(ERROR, stages, strict=True))
        scale = tolerance * (1 + torch.maximum(here.abs(), there.abs()))
        error = (wrong / scale).double().square().mean(dim=1).sqrt()
        good = ~(error > 1) | (h.abs() <= SHORTEST * abs(span))  # what is not a number goes on, and soon ends
        step[items] = h * (0.9 * error.nan_to_num(0).clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        done = items[good]
        y[done], theta[done], first[done] = there[good], (at + h)[good], stages[-1][good]
        items = items[~good | ((at + h - end).abs() > SHORTEST / 10 * abs(span))]
    return y
