"""Exact denoisers of data whose distribution is known: the ground truth of the tests."""

import torch
from torch import Tensor

from src.diffusion.denoiser import Denoiser
from src.diffusion.process import expand
from src.diffusion.schedule import NoiseSchedule


class Gaussian(Denoiser):
    """E[x_0 | x_t] for x_0 ~ N(mean, diag(var)):  mean + α var/(α² var + σ²) · (x_t − α mean).

    Args:
        schedule: α(t), σ(t).
        mean, var: of each pixel, (C, H, W).
    """

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self.schedule, self.mean, self.var = schedule, mean, var

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        gain = alpha * self.var / (alpha**2 * self.var + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def transport(self, x_T: Tensor) -> Tensor:
        """Where the probability-flow ODE takes x_T at t = 0: the monotone map between the two Gaussians.

        Ref: score-SDE App. D.1; in one dimension the flow keeps quantiles
        """
        T = torch.tensor(float(self.schedule.T), dtype=torch.float64)
        alpha, sigma = self.schedule.alpha(T).to(x_T.dtype), self.schedule.sigma(T).to(x_T.dtype)
        return self.mean + (self.var / (alpha**2 * self.var + sigma**2)).sqrt() * (x_T - alpha * self.mean)
