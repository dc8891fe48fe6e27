"""Data with known answers: a correlated Gaussian and a mixture, as vectors of D numbers, in float64."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from lightning_diffusion.diffusion.analytic import Gaussian, GaussianMixture
from lightning_diffusion.diffusion.denoiser import Denoiser, to_eps
from lightning_diffusion.diffusion.schedule import NoiseSchedule

F64 = torch.float64


def gaussian(schedule: NoiseSchedule) -> Gaussian:
    A = torch.tensor([[0.5, 0.2, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.4]], dtype=F64)
    return Gaussian(schedule, torch.tensor([0.5, -0.2, 0.1], dtype=F64), A @ A.T)


def mixture(schedule: NoiseSchedule) -> GaussianMixture:
    """Three well-separated components in the plane, of different weights and shapes."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    means = torch.tensor([[0.8, 0.0], [-0.6, 0.7], [-0.5, -0.8]], dtype=F64)
    covariances = torch.tensor(
        [[[0.02, 0.01], [0.01, 0.03]], [[0.04, 0.0], [0.0, 0.01]], [[0.02, -0.01], [-0.01, 0.02]]], dtype=F64
    )
    return GaussianMixture(schedule, weights, means, covariances)


def points(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def normal_like(x: Tensor, seed: int = 0) -> Callable[[], Tensor]:
    """Return a function that draws standard normal noise like x."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def probability_flow(denoiser: Denoiser, x: Tensor, times: Tensor) -> list[Tensor]:
    """Return the flow through x at times[0], at all times: scipy's DOP853 on d(x/α)/d(σ/α) = ε̂, to 1e-12."""
    schedule = denoiser.schedule
    levels = (schedule.sigma(times) / schedule.alpha(times)).numpy()

    def slope(level: float, y: np.ndarray) -> np.ndarray:
        t = schedule.t_of_logsnr(torch.tensor(-2 * np.log(level), dtype=F64))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x_t = torch.from_numpy(y.reshape(x.shape)) * alpha
        return to_eps(denoiser(x_t, t), x_t, alpha, sigma).numpy().ravel()

    start = (x / schedule.alpha(times[0])).numpy().ravel()
    ends = (levels[0], levels[-1])
    solution = solve_ivp(slope, ends, start, method="DOP853", t_eval=levels, rtol=1e-12, atol=1e-12)
    alphas = schedule.alpha(times)
    return [torch.from_numpy(y.copy()).reshape(x.shape) * a for y, a in zip(solution.y.T, alphas, strict=True)]
