"""Noise schedules: the signal scale α(t) and the noise scale σ(t) of q(x_t | x_0) = N(α_t x_0, σ_t² I).

The clock runs from the data at t = 0 to the noise at t = T. Continuous schedules have closed forms (continuous.py),
discrete ones (T, β_t) have tables over t = 0 … T (discrete.py).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class NoiseSchedule(ABC):
    """α(t) and σ(t) on the clock 0 ≤ t ≤ T.

    Times are floating-point tensors of any shape. Results keep their shape and dtype. Discrete schedules also accept
    integer times.
    """

    T: float
    t_min: float  # first time after t = 0 for training and sampling
    prior_std: float = 1.0  # x_T ~ N(0, prior_std² I)
    chain_length: int = 0  # steps of a discrete chain; 0 in continuous time
    key: str = "schedule"  # configuration key that determines the signal at T, for messages

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t); 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale σ(t); 0 at t = 0."""

    @abstractmethod
    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        """The time at which the log-SNR is λ; the inverse of `logsnr`."""

    def logsnr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio λ(t) = log(α²/σ²) in nats; +∞ at t = 0. Ref: VDM Eq. 3"""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def snr(self, t: Tensor) -> Tensor:
        """α²/σ²."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def network_time(self, t: Tensor) -> Tensor:
        """The network's time input: t scaled to 0 … 1000, so that runs with different T are comparable."""
        return t * (1000 / self.T)

    def nearest(self, t: Tensor) -> Tensor:
        """The nearest whole step on a discrete schedule; t itself on a continuous one."""
        return t

    def training_time(self, t: Tensor) -> Tensor:
        """The nearest training time: within the clock, and a whole step on a discrete schedule."""
        return t.clamp(0.0, float(self.T))

    def quantile(self, u: Tensor) -> Tensor:
        """Quantile function of the uniform distribution of times: u in [0, 1) -> t in (0, T]."""
        return (1 - u) * self.T

    def clock(self) -> Tensor:
        """The possible times of training and sampling, ascending, float64: all steps 1 … T of a chain, or 10,000 evenly
        spaced times from t_min to T."""
        return torch.linspace(self.t_min, float(self.T), 10_000, dtype=torch.float64)

    def chain(self, needed_by: str, alternative: str) -> Tensor:
        """The chain's times T, T − 1, …, 0, float64.

        Args:
            needed_by: the key that needs a chain, for the error message.
            alternative: the remedy other than a discrete schedule, for the error message.

        Raises:
            ValueError: a continuous schedule.
        """
        raise ValueError(
            f"{needed_by} and schedule: this schedule is continuous and has no chain of steps; "
            f"choose a discrete schedule such as schedule=cosine, or {alternative}"
        )

    def spacing(self, num_steps: int) -> float:
        """The distance between num_steps evenly spaced times: T/num_steps, rounded down to whole steps on a chain."""
        return self.T / num_steps

    def variational_weight(self, t: Tensor) -> Tensor:
        """The weight of ‖x̂_0 − x_0‖² in the variational bound, in nats, for t uniform on the clock: −½ T dSNR/dt.

        Ref: VDM Eq. 17
        """
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.snr(t).sum(), t)
        return -0.5 * self.T * slope

    def equals(self, other: "NoiseSchedule") -> bool:
        """Whether both have the same clock and, at each tenth of it, the same α and σ to 1e-6."""
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
        """α_T²/σ_T², the signal left at the end of the clock; 0 if the schedule ends in pure noise."""
        return float(self.snr(self.end))


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
