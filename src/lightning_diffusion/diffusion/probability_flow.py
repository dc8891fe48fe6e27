"""The probability flow: an ODE that carries noise to data and back.

In polar coordinates α = r cos θ, σ = r sin θ every schedule has the same flow, finite at both ends: of y = x_t/r,

    dy/dθ = ε̂ cos θ − x̂_0 sin θ = (y cos θ − x̂_0)/sin θ

Ref: score-SDE Eq. 13 and DDIM Eq. 14, in the angle of Progressive Distillation App. D
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.runge_kutta import Slope, solve
from lightning_diffusion.diffusion.schedule import NoiseSchedule


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


def flow(denoiser: Denoiser, shape: Sequence[int]) -> Slope:
    """dy/dθ as a function of y (b, D), θ (b,) and the items' numbers (b,), for images of a shape (C, H, W)."""

    def slope(y: Tensor, theta: Tensor, items: Tensor) -> Tensor:
        t, image = time_of(denoiser.schedule, theta), y.unflatten(1, shape)
        x_0 = denoiser.of(items)(expand(radius(denoiser.schedule, t), image) * image, t)
        return velocity(image, x_0, theta).flatten(1)

    return slope


def flow_with_density(denoiser: Denoiser, shape: Sequence[int], probes: Tensor) -> Slope:
    """d(y, log p)/dθ as a function of (y, log p) (b, D + 1), θ (b,) and the items' numbers (b,):

        d log p/dθ = −∇·(dy/dθ) = (∇·x̂_0 − D cos θ)/sin θ ,   ∇·x̂_0 ≈ Σ_z zᵀ (∂x̂_0/∂y) z

    Args:
        probes: the vectors z of each item, (B, number of z, D), with Σ_z z zᵀ = I, exactly or in expectation.

    Ref: score-SDE Eq. 39, App. D.2; FFJORD §3.1 for the estimator
    """
    D = probes.shape[2]

    def slope(state: Tensor, theta: Tensor, items: Tensor) -> Tensor:
        t, inner = time_of(denoiser.schedule, theta), denoiser.of(items)
        with torch.enable_grad():
            y = state[:, :D].detach().requires_grad_()
            x_t = (expand(radius(denoiser.schedule, t), y) * y).unflatten(1, shape)
            x_0 = inner(x_t, t).flatten(1)
            trace = torch.zeros_like(y[:, 0])
            for z in probes[items].unbind(1):
                (product,) = torch.autograd.grad(x_0, y, z, retain_graph=True)
                trace = trace + (product * z).sum(1)
        change = (trace - D * theta.cos().to(y)) / theta.sin().to(y)
        return torch.cat([velocity(y, x_0, theta), change[:, None]], dim=1).detach()

    return slope


def transport(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, tolerance: float) -> Tensor:
    """x_s on the flow through x_t, each item to the tolerance and independent of the others.

    Args:
        denoiser: with its condition filled in.
        x_t: (B, C, H, W).
        t, s: float64 scalars in (0, T], s before or after t.
        tolerance: of the local error, relative to 1 + |y|.
    """
    schedule, shape = denoiser.schedule, x_t.shape[1:]
    start, end = (float(angle(schedule, time)) for time in (t, s))
    y = (x_t / radius(schedule, t)).flatten(1)
    y = solve(flow(denoiser, shape), y, start, end, tolerance)
    return radius(schedule, s) * y.unflatten(1, shape)
