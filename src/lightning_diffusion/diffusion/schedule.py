"""Noise schedules: the signal scale α(t) and the noise scale σ(t) of q(x_t | x_0) = N(α_t x_0, σ_t² I).

The clock starts at the data, t = 0, and ends at the noise, t = T. A discrete schedule (T, β_t) is one schedule
among others: its α and σ are tables over t = 0 … T.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class NoiseSchedule(ABC):
    """α(t) and σ(t) on the clock 0 ≤ t ≤ T. Times are floating tensors of any shape; shape and dtype are kept.
    Whole numbers will do for the steps of a chain."""

    T: float
    t_min: float  # the first time after the data that is worth a step
    prior_std: float = 1.0  # x_T ~ N(0, prior_std² I)
    chain_length: int = 0  # steps of a discrete chain; 0 in continuous time
    key: str = "schedule"  # the choice in the configuration that decides how much signal is left at T

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t), 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale σ(t), 0 at t = 0."""

    @abstractmethod
    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        """The time at which the log-SNR is λ: the inverse of `logsnr`."""

    def logsnr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio λ(t) = log(α²/σ²), in nats; +∞ at t = 0. Ref: VDM Eq. 3"""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def snr(self, t: Tensor) -> Tensor:
        """α²/σ²."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: a clock up to 1000, whatever T, so that sweeps over T compare."""
        return t * (1000 / self.T)

    def nearest(self, t: Tensor) -> Tensor:
        """The nearest of the times that training visits: whole numbers on a discrete schedule."""
        return t

    def training_time(self, t: Tensor) -> Tensor:
        """The nearest time that training may visit: in (0, T], and whole on a discrete schedule."""
        return t.clamp(0.0, float(self.T))

    def quantile(self, u: Tensor) -> Tensor:
        """The uniform time distribution's quantile function: u in [0, 1) -> t in (0, T]."""
        return (1 - u) * self.T

    def clock(self) -> Tensor:
        """All times that training and sampling may visit, rising, float64: a chain's steps 1 … T, or 10,000 even times
        from t_min to T."""
        return torch.linspace(self.t_min, float(self.T), 10_000, dtype=torch.float64)

    def chain(self, needed_by: str, alternative: str) -> Tensor:
        """The chain's times T, T − 1, …, 0, float64.

        Args:
            needed_by: the key that needs a chain, for the message.
            alternative: to choosing a discrete schedule, for the message.

        Raises:
            ValueError: a continuous schedule.
        """
        raise ValueError(
            f"{needed_by} and schedule: this schedule is continuous and has no chain of steps; "
            f"choose a discrete schedule such as schedule=cosine, or {alternative}"
        )

    def spacing(self, num_steps: int) -> float:
        """T/num_steps, the distance of evenly spaced times, rounded down to whole steps on a discrete schedule."""
        return self.T / num_steps

    def variational_weight(self, t: Tensor) -> Tensor:
        """The variational bound's weight of ‖x̂_0 − x_0‖², in nats for a t drawn uniformly from the clock:
        −½ T dSNR/dt. Ref: VDM Eq. 17"""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.snr(t).sum(), t)
        return -0.5 * self.T * slope

    def equals(self, other: "NoiseSchedule") -> bool:
        """Whether the other has the same clock and, at every tenth of it, the same α and σ to 1e-6."""
        if (self.T, self.chain_length, self.prior_std) != (other.T, other.chain_length, other.prior_std):
            return False
        t = self.end * torch.linspace(0.1, 1, 10, dtype=torch.float64)
        pairs = ((self.alpha(t), other.alpha(t)), (self.sigma(t), other.sigma(t)))
        return all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in pairs)

    @property
    def end(self) -> Tensor:
        """T as a float64 scalar."""
        return torch.tensor(float(self.T), dtype=torch.float64)

    def terminal_snr(self) -> float:
        """α_T²/σ_T²: what is left of the data at the end of the clock, 0 for a perfect schedule."""
        return float(self.snr(self.end))


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
