"""Loss weightings, each defined by the weight w of the squared error of x̂_0.

The error of x̂_0 is σ/Δ times that of the output of a prediction (c, d), so every weighting applies to every prediction:
w · (σ/Δ)² ‖output − target‖² = w ‖x̂_0 − x_0‖². Ref: Understanding Diffusion Objectives, Table 1
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_diffusion.diffusion.parameterization import Parameterization
from lightning_diffusion.diffusion.schedule import NoiseSchedule, widest_float


class Weighting(ABC):
    """A weight of the loss at each training time."""

    @abstractmethod
    def of_output(self, schedule: NoiseSchedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """The weight of the squared error of the network's output, of the shape of t."""


class Simple(Weighting):
    """Weight 1 on the error of the network's output: L_simple. Ref: DDPM Eq. 14"""

    def of_output(self, schedule: NoiseSchedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class X0Weighting(Weighting):
    """A weighting defined by w(t) on ‖x̂_0 − x_0‖²."""

    @abstractmethod
    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """w(t) > 0, of the shape of t."""

    def of_output(self, schedule: NoiseSchedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = t.to(widest_float(t.device))
        gain = schedule.sigma(t) / parameterization.determinant(schedule, t)
        return (self.of_x0(schedule, t) * gain**2).float()


class SNR(X0Weighting):
    """w = SNR: the unweighted ε loss if α² + σ² = 1. Ref: Progressive Distillation §4"""

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.snr(t)


class TruncatedSNR(X0Weighting):
    """w = max(SNR, 1). Ref: Progressive Distillation §4"""

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.snr(t).clamp(min=1)


class MinSNR(X0Weighting):
    """w = min(SNR, γ). Ref: Min-SNR-γ Eq. 7

    Args:
        gamma: γ > 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise ValueError(f"weighting.gamma={gamma}: choose gamma > 0 (the paper uses 5)")
        self.gamma = gamma

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.snr(t).clamp(max=self.gamma)


class P2(X0Weighting):
    """w = SNR/(k + SNR)^γ, with less weight on imperceptible noise levels. Ref: P2 weighting Eq. 8

    Args:
        k: > 0.
        gamma: ≥ 0.
    """

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        if k <= 0 or gamma < 0:
            raise ValueError(f"weighting.k={k}, gamma={gamma}: choose k > 0 and gamma >= 0")
        self.k, self.gamma = k, gamma

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.snr(t) / (self.k + schedule.snr(t)) ** self.gamma


class EDM(X0Weighting):
    """w = (σ̃² + σ_d²)/(σ̃ σ_d)² = SNR + 1/σ_d², which is weight 1 on the output of EDM's network. Ref: EDM Table 1

    Args:
        sigma_data: σ_d > 0.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if sigma_data <= 0:
            raise ValueError(f"weighting.sigma_data={sigma_data}: choose the data's standard deviation, > 0")
        self.sigma_data = sigma_data

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.snr(t) + self.sigma_data**-2


class Sigmoid(X0Weighting):
    """w = SNR · sigmoid(b − λ), i.e. sigmoid(b − λ) on ‖ε̂ − ε‖². Ref: Understanding Diffusion Objectives §4 (VDM++)

    Args:
        bias: b.
    """

    def __init__(self, bias: float = 2.0) -> None:
        self.bias = bias

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.snr(t) * torch.sigmoid(self.bias - schedule.logsnr(t))


class Variational(X0Weighting):
    """The weighting of the variational bound, for t uniform on the clock; see `NoiseSchedule.variational_weight`.

    Ref: DDPM Eqs. 5, 8; VDM Eqs. 13, 17
    """

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.variational_weight(t)
