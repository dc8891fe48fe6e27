"""Schedules in continuous time, with closed forms."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_diffusion.diffusion.schedule import NoiseSchedule


class VP(NoiseSchedule):
    """Variance preserving: α = exp(−B/2), σ = √(1 − exp(−B)), B(t) = β_min t + ½ (β_max − β_min) t², 0 ≤ t ≤ 1.

    Args:
        beta_min, beta_max: 0 < β_min ≤ β_max.

    Ref: score-SDE Eq. 32–33
    """

    T = 1.0
    t_min = 1e-3

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(
                f"schedule.beta_min={beta_min}, schedule.beta_max={beta_max}: choose 0 < beta_min <= beta_max"
            )
        self.beta_min, self.beta_max = beta_min, beta_max
        self.key = f"schedule.beta_max={beta_max:g}"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return self._time(F.softplus(-logsnr))  # e^{−B} = sigmoid(λ)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _time(self, integral: Tensor) -> Tensor:
        """Solve B(t) = integral by the form of the quadratic formula that does not cancel."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


class SubVP(VP):
    """Sub-VP: the α of VP with σ = 1 − exp(−B), whose variance is below that of VP. Ref: score-SDE Eq. 34–35"""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        # y = e^{−B}: e^λ = y/(1 − y)², a quadratic in y whose root in (0, 1) is 1 − 2/(1 + √(1 + 4 e^λ))
        one_minus_y = 2 / (1 + torch.sqrt(1 + 4 * logsnr.exp()))
        return self._time(-torch.log1p(-one_minus_y))


class RectifiedFlow(NoiseSchedule):
    """Straight lines: α = 1 − t, σ = t, 0 ≤ t ≤ 1. Ref: Rectified Flow Eq. 1; Flow Matching, optimal-transport path"""

    T = 1.0
    t_min = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)


class ShiftedCosine(NoiseSchedule):
    """λ(t) = −2 log tan(π t/2) + 2 log shift: the cosine schedule, shifted for the resolution. α² + σ² = 1, 0 ≤ t ≤ 1.

    Args:
        shift: > 0, base resolution divided by resolution (64/256 for 256 pixels); 1 is the plain cosine schedule.

    Ref: simple diffusion Eq. 4
    """

    T = 1.0
    t_min = 1e-3

    def __init__(self, shift: float = 1.0) -> None:
        if shift <= 0:
            raise ValueError(f"schedule.shift={shift}: choose a shift > 0, such as 64/256 for images of 256 pixels")
        self.shift = shift

    def alpha(self, t: Tensor) -> Tensor:
        signal, noise = self._sides(t)
        return signal / torch.hypot(signal, noise)

    def sigma(self, t: Tensor) -> Tensor:
        signal, noise = self._sides(t)
        return noise / torch.hypot(signal, noise)

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.atan(self.shift * torch.exp(-logsnr / 2)) * (2 / math.pi)

    def _sides(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin(π(1 − t)/2) equals cos(πt/2) and is exactly 0 at t = 1
        return self.shift * torch.sin((1 - t) * (math.pi / 2)), torch.sin(t * (math.pi / 2))


class VarianceExploding(NoiseSchedule):
    """α = 1 and growing noise: the base of EDM and VE. Uniform training times give log-uniform noise levels.

    Args:
        sigma_min, sigma_max: 0 < σ_min < σ_max, the range of noise levels.
    """

    time_scale = 1000.0  # factor of the network's time input

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(
                f"schedule.sigma_min={sigma_min}, schedule.sigma_max={sigma_max}: choose 0 < sigma_min < sigma_max"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = sigma_max
        self.key = f"schedule.sigma_max={sigma_max:g}"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def network_time(self, t: Tensor) -> Tensor:
        """time_scale · ¼ ln σ. Ref: EDM Table 1, c_noise"""
        return self.time_scale / 4 * self.sigma(t).log()

    def quantile(self, u: Tensor) -> Tensor:
        """Quantile function of times whose ln σ is uniform between ln σ_min and ln σ_max."""
        log_sigma = math.log(self.sigma_max) + u * math.log(self.sigma_min / self.sigma_max)
        return self.t_of_logsnr(-2 * log_sigma)


class EDM(VarianceExploding):
    """σ = t, so that the time is the noise level.

    Args:
        sigma_min, sigma_max: 0 < σ_min < σ_max.
        time_scale: > 0, the factor of the network's time input ¼ ln σ. 1000 gives it about the range of DDPM's time
            input; the paper and diffusers use 1.

    Ref: EDM Table 1
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, time_scale: float = 1000.0) -> None:
        super().__init__(sigma_min, sigma_max)
        if time_scale <= 0:
            raise ValueError(f"schedule.time_scale={time_scale}: choose time_scale > 0 (1000, or 1 as in the paper)")
        self.T, self.t_min, self.time_scale = sigma_max, sigma_min, time_scale

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr / 2)


class VE(VarianceExploding):
    """σ = √t: Brownian motion, where the time is the variance. Ref: score-SDE Eq. 30, in EDM Table 1's form"""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.T, self.t_min = sigma_max**2, sigma_min**2

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr)
