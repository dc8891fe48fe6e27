"""Predictions of a network, as directions in the plane of (x_0, ε).

Each prediction is target = c x_0 + d ε, where (c, d) depend only on t. With x_t = α x_0 + σ ε these are two equations
in two unknowns. Cramer's rule, with Δ = c σ − d α, solves them:

    x̂_0 = (σ output − d x_t)/Δ ,      ε̂ = (c x_t − α output)/Δ

A prediction is singular where Δ = 0: there the output contains no information about x_0 beyond x_t. Where Δ is small,
x̂_0 is a difference of large numbers, which amplifies float32 rounding errors.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_diffusion.diffusion.process import expand, posterior
from lightning_diffusion.diffusion.schedule import NoiseSchedule

ROUNDING = 0.42 * 2**-24  # root mean square of float32's relative rounding error, for a log-uniform mantissa
MAX_AMPLIFICATION = 2.0**17


class Parameterization(ABC):
    """A prediction (c, d). x_0, eps, x_t, output: (B, C, H, W); t: (B,) or (), in (0, T]."""

    name: str

    @abstractmethod
    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """c(t), d(t), of the shape of t."""

    def input_scale(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """The factor of x_t at the network's input, of the shape of t."""
        return torch.ones_like(t)

    def target(self, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target c x_0 + d ε of the network's output at x_t."""
        c, d = self.direction(schedule, t)
        return expand(c, x_0) * x_0 + expand(d, x_0) * eps

    def to_x0(self, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0 = (σ output − d x_t)/Δ."""
        (_, d), delta = self.direction(schedule, t), self.determinant(schedule, t)
        return expand(schedule.sigma(t) / delta, x_t) * output - expand(d / delta, x_t) * x_t

    def determinant(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """Δ(t) = c σ − d α."""
        c, d = self.direction(schedule, t)
        return c * schedule.sigma(t) - d * schedule.alpha(t)

    def amplification(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """The ratio of the rounding error of x̂_0 to that of its inputs, of the shape of t:

            A = √(σ² (c² + d²) + d² (α² + σ²))/|Δ|

        The output and x_t are each rounded to float32, with independent relative errors of root mean square u. For x_0
        and ε of unit variance, σ output has an error of u σ √(c² + d²), d x_t one of u |d| √(α² + σ²), and x̂_0 one of
        u A.
        """
        c, d = self.direction(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        from_output, from_x_t = sigma**2 * (c**2 + d**2), d**2 * (alpha**2 + sigma**2)
        return (from_output + from_x_t).sqrt() / self.determinant(schedule, t).abs()

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError if float32 rounding makes x̂_0 inaccurate at any time of the clock.

        The limit A ≤ 2¹⁷ keeps the root mean square error of x̂_0 below 0.42 · 2⁻²⁴ · 2¹⁷ = 3.3e-3: below half the
        spacing of an image's 256 levels, 1/255. A of `eps` is 2.9e4 on the cosine chain of 1000 steps and 1.1e5 on the
        one of 4000 (Improved DDPM's); on linear chains of 5 … 20 steps it is 1.9e5 … 1.2e9.
        """
        t = schedule.clock()
        amplification = self.amplification(schedule, t).nan_to_num(nan=torch.inf)
        worst = int(amplification.argmax())
        if float(amplification[worst]) > MAX_AMPLIFICATION:
            level, error = (schedule.sigma(t) / schedule.alpha(t))[worst], ROUNDING * amplification[worst]
            raise ValueError(
                f"parameterization={self.name} and {schedule.key}: at t={t[worst]:.6g}, where σ/α is {level:.2g}, "
                f"float32 rounding causes an error of {error:.2g} in the x_0 that {self.name} implies; "
                "choose parameterization=v, parameterization=x0 or a schedule whose SNR stays higher"
            )


class Eps(Parameterization):
    """ε, (c, d) = (0, 1). Ref: DDPM Eqs. 11, 15"""

    name = "eps"

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


class X0(Parameterization):
    """x_0, (c, d) = (1, 0). Ref: DDPM §3.2"""

    name = "x0"

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)


class V(Parameterization):
    """v = α ε − σ x_0, (c, d) = (−σ, α). Ref: Progressive Distillation, App. D"""

    name = "v"

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return -schedule.sigma(t), schedule.alpha(t)


class Score(Parameterization):
    """∇ log q(x_t | x_0) = −ε/σ, (c, d) = (0, −1/σ). Ref: score-SDE Eq. 7"""

    name = "score"

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), -1 / schedule.sigma(t)


class Flow(Parameterization):
    """The velocity of the straight line from data to noise, ε − x_0, (c, d) = (−1, 1). Ref: Rectified Flow Eq. 1"""

    name = "flow"

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)


class PosteriorMean(Parameterization):
    """μ̃(x_t, x_0) of q(x_{t−1} | x_t, x_0), on discrete schedules only; the lecture's first choice.

    Ref: DDPM Eqs. 7, 8
    """

    name = "mean"

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        q = posterior(schedule, t, t - 1)
        return q.on_x_t * schedule.alpha(t) + q.on_x_0, q.on_x_t * schedule.sigma(t)

    def check(self, schedule: NoiseSchedule) -> None:
        schedule.chain("parameterization=mean", "parameterization=x0")
        super().check(schedule)


class EDM(Parameterization):
    """F of D(x; σ) = c_skip x + c_out F(c_in x), which keeps input and target at unit variance.

    In the coordinates x/α with noise level σ̃ = σ/α:
    c_skip = σ_d²/(σ̃² + σ_d²),  c_out = σ̃ σ_d/√(σ̃² + σ_d²),  c_in = 1/√(σ̃² + σ_d²).

    Args:
        sigma_data: σ_d, the data's standard deviation, > 0.

    Ref: EDM Table 1, Eq. 7
    """

    name = "edm"

    def __init__(self, sigma_data: float = 0.5) -> None:
        if sigma_data <= 0:
            raise ValueError(f"parameterization.sigma_data={sigma_data}: choose the data's standard deviation, > 0")
        self.sigma_data = sigma_data

    def direction(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        # F = (x_0 − c_skip x_t/α)/c_out, multiplied out so that it also holds at α = 0
        alpha, sigma, norm = self._scales(schedule, t)
        return sigma / (self.sigma_data * norm), -alpha * self.sigma_data / norm

    def input_scale(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return 1 / self._scales(schedule, t)[2]

    def _scales(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha, sigma, torch.sqrt(sigma**2 + alpha**2 * self.sigma_data**2)
