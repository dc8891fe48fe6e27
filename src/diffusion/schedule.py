"""Noise schedules: the signal scale α(t) and the noise scale σ(t) of q(x_t | x_0) = N(α_t x_0, σ_t² I).

The clock starts at the data, t = 0, and ends at the noise, t = T. A discrete schedule (T, β_t) is one schedule
among others: its α and σ are tables over t = 0 … T.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

MAX_BETA = 0.999  # Ref: Improved DDPM §3.2, keeps the chain invertible at its noisy end


class NoiseSchedule(ABC):
    """α(t) and σ(t) on the clock 0 ≤ t ≤ T. Times are floating tensors of any shape; shape and dtype are kept."""

    T: float
    prior_std: float = 1.0  # x_T ~ N(0, prior_std² I)

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t), 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale σ(t), 0 at t = 0."""

    def logsnr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio λ(t) = log(α²/σ²), in nats; +∞ at t = 0. Ref: VDM Eq. 3"""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: the DDPM clock 1000 t/T, whatever T, so that sweeps over T compare."""
        return t * (1000 / self.T)

    def nearest(self, t: Tensor) -> Tensor:
        """The nearest times that the schedule defines (any time, on a continuous schedule)."""
        return t

    def quantile(self, u: Tensor) -> Tensor:
        """The uniform time distribution's quantile function: u in [0, 1) -> t in (0, T]."""
        return (1 - u) * self.T

    def terminal_snr(self) -> float:
        """α_T²/σ_T²: what is left of the data at the end of the clock, 0 for a perfect schedule."""
        T = torch.tensor(float(self.T), dtype=torch.float64)
        return float((self.alpha(T) / self.sigma(T)) ** 2)


class DiscreteSchedule(NoiseSchedule):
    """The chain q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I), t = 1 … T, as its marginals.

        ᾱ_t = Π_{r≤t} (1 − β_r) ,   α(t) = √ᾱ_t ,   σ(t) = √(1 − ᾱ_t)

    Args:
        betas: β_1 … β_T in (0, 1], shape (T,). Tables are float64; a result has the dtype of its t.

    Raises:
        ValueError: a β outside (0, 1].

    Ref: DDPM Eqs. 2, 4
    """

    def __init__(self, betas: Tensor) -> None:
        betas = betas.double()
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"schedule: every β must lie in (0, 1], but they span {_span(betas)}; "
                "lower schedule.beta_1 and schedule.beta_T, or choose another schedule"
            )
        self.T = len(betas)
        alpha_bar = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, dim=0)])  # (T + 1,), ᾱ_0 = 1
        # 1 − ᾱ by its own recurrence: 1 − ᾱ_t = (1 − ᾱ_{t−1})(1 − β_t) + β_t does not cancel at small t.
        one_minus = [0.0]
        for beta in betas.tolist():
            one_minus.append(one_minus[-1] * (1 - beta) + beta)
        self._alpha = alpha_bar.sqrt()
        self._sigma = torch.tensor(one_minus, dtype=torch.float64).sqrt()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha(self, t: Tensor) -> Tensor:
        return self._tables(t)[0][t.long()].to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return self._tables(t)[1][t.long()].to(t.dtype)

    def nearest(self, t: Tensor) -> Tensor:
        return t.round()

    def quantile(self, u: Tensor) -> Tensor:
        return (torch.floor(u * self.T) + 1).clamp(max=self.T)

    def _tables(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._on_device:
            dtype = torch.float32 if t.device.type == "mps" else torch.float64  # MPS has no float64
            self._on_device[t.device] = (self._alpha.to(t.device, dtype), self._sigma.to(t.device, dtype))
        return self._on_device[t.device]


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> DiscreteSchedule:
    """β_t linear from β_1 to β_T, both meant for T = 1000 and scaled by 1000/T so that ᾱ_T stays near 0 at any T.

    A scaled β above 0.999 (T ≤ 20) is clipped there. Ref: DDPM §4; Improved DDPM §3.2 for the scaling

    Args:
        T: number of steps, ≥ 1.
        beta_1, beta_T: 0 < β_1 ≤ β_T < 1, at T = 1000.
    """
    _check_T(T)
    if not 0 < beta_1 <= beta_T < 1:
        raise ValueError(
            f"schedule.beta_1={beta_1}, schedule.beta_T={beta_T}: choose 0 < beta_1 <= beta_T < 1 (DDPM: 1e-4, 0.02)"
        )
    betas = torch.linspace(beta_1, beta_T, T, dtype=torch.float64) * (1000 / T)
    return DiscreteSchedule(betas.clamp(max=MAX_BETA))


def cosine(T: int = 1000, s: float = 0.008) -> DiscreteSchedule:
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), β_t = min(1 − ᾱ_t/ᾱ_{t−1}, 0.999).

    Args:
        T: number of steps, ≥ 1.
        s: offset ≥ 0 that keeps β_1 from vanishing.

    Ref: Improved DDPM Eq. 17
    """
    _check_T(T)
    if not 0 <= s < 1:
        raise ValueError(f"schedule.s={s}: choose 0 <= s < 1 (Improved DDPM uses 0.008)")
    t = torch.arange(T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t / T + s) / (1 + s) * torch.pi / 2) ** 2
    return DiscreteSchedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA))


def _check_T(T: int) -> None:
    if T < 1:
        raise ValueError(f"schedule.T={T}: the chain needs at least one step, choose T >= 1")


def _span(values: Tensor) -> str:
    return f"[{values.min():.3g}, {values.max():.3g}]" if values.numel() else "nothing"
