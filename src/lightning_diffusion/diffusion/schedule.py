"""Noise schedules: the signal scale α(t) and the noise scale σ(t) of q(x_t | x_0) = N(α_t x_0, σ_t² I).

The clock starts at the data, t = 0, and ends at the noise, t = T. A discrete schedule (T, β_t) is one schedule
among others: its α and σ are tables over t = 0 … T.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

MAX_STEPS = 1_000_000  # of a chain: its tables are filled step by step


class NoiseSchedule(ABC):
    """α(t) and σ(t) on the clock 0 ≤ t ≤ T. Times are floating tensors of any shape; shape and dtype are kept.
    Whole numbers will do for the steps of a chain."""

    T: float
    t_min: float  # the first time after the data that is worth a step
    prior_std: float = 1.0  # x_T ~ N(0, prior_std² I)
    discrete: bool = False
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

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: a clock up to 1000, whatever T, so that sweeps over T compare."""
        return t * (1000 / self.T)

    def nearest(self, t: Tensor) -> Tensor:
        """The nearest of the times that training visits: whole numbers on a discrete schedule."""
        return t

    def training_time(self, t: Tensor) -> Tensor:
        """The nearest time that training may visit: in (0, T], and whole on a discrete schedule."""
        return self.nearest(t).clamp(min=self.t_min if self.discrete else 0.0, max=float(self.T))

    def quantile(self, u: Tensor) -> Tensor:
        """The uniform time distribution's quantile function: u in [0, 1) -> t in (0, T]."""
        return (1 - u) * self.T

    def clock(self) -> Tensor:
        """All times that training and sampling may visit, rising, float64: a chain's steps 1 … T, or 10,000 even times
        from t_min to T."""
        if self.discrete:
            return torch.arange(1, int(self.T) + 1, dtype=torch.float64)
        return torch.linspace(self.t_min, float(self.T), 10_000, dtype=torch.float64)

    def equals(self, other: "NoiseSchedule") -> bool:
        """Whether the other has the same clock and, at every tenth of it, the same α and σ to 1e-6."""
        if (self.T, self.discrete, self.prior_std) != (other.T, other.discrete, other.prior_std):
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
        return float((self.alpha(self.end) / self.sigma(self.end)) ** 2)


class DiscreteSchedule(NoiseSchedule):
    """The chain q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I), t = 1 … T, as its marginals.

        ᾱ_t = Π_{r≤t} (1 − β_r) ,   α(t) = √ᾱ_t ,   σ(t) = √(1 − ᾱ_t)

    Between whole numbers the log-SNR is interpolated; towards an infinite end it is σ (t < 1) or α (T − 1 < t) instead.

    Args:
        betas: β_1 … β_T in (0, 1], shape (T,). Tables are float64; a result has the dtype of its t.
        zero_terminal_snr: shifts and scales √ᾱ so that ᾱ_T = 0 and ᾱ_1 stays. Ref: Common Diffusion Noise Schedules
            and Sample Steps Are Flawed, Alg. 1
        key: see NoiseSchedule; schedule.T=… or schedule.zero_terminal_snr=true if None.

    Raises:
        ValueError: a β outside (0, 1]; fewer than two steps to rescale; more than 1,000,000 steps.

    Ref: DDPM Eqs. 2, 4
    """

    t_min = 1.0
    discrete = True

    def __init__(self, betas: Tensor, zero_terminal_snr: bool = False, key: str | None = None) -> None:
        check_length(betas.numel(), "schedule")
        betas = betas.double()
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"schedule: every β must lie in (0, 1], but they span {_span(betas)}; "
                "lower schedule.beta_1 and schedule.beta_T, or choose another schedule"
            )
        betas = _without_terminal_signal(betas) if zero_terminal_snr else betas
        self.betas, self.T = betas, len(betas)
        self.key = key or ("schedule.zero_terminal_snr=true" if zero_terminal_snr else f"schedule.T={self.T}")
        # 1 − ᾱ by its own recurrence: 1 − ᾱ_t = (1 − ᾱ_{t−1})(1 − β_t) + β_t does not cancel at small t.
        one_minus = [0.0]
        for beta in betas.tolist():
            one_minus.append(one_minus[-1] * (1 - beta) + beta)
        self._alpha = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, dim=0)]).sqrt()  # (T + 1,), ᾱ_0 = 1
        self._sigma = torch.tensor(one_minus, dtype=torch.float64).sqrt()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha(self, t: Tensor) -> Tensor:
        return self._between(t)[0].to(_floating(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self._between(t)[1].to(_floating(t))

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        alphas, sigmas = self._tables(logsnr)
        wanted, table = logsnr.to(alphas.dtype), 2 * (alphas.log() - sigmas.log())  # from +∞ down, perhaps to −∞
        k = (torch.searchsorted(-table, -wanted.contiguous()) - 1).clamp(0, self.T - 1)
        t = k + (table[k] - wanted) / (table[k] - table[k + 1])
        t = torch.where(k == 0, torch.sigmoid(-wanted).sqrt() / sigmas[1], t)
        into_noise = (k == self.T - 1) & (alphas[-1] == 0)
        t = torch.where(into_noise, self.T - torch.sigmoid(wanted).sqrt() / alphas[-2], t)
        return t.clamp(0, self.T).to(logsnr.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        """(t − 1) 1000/T: for T = 1000 the 0 … 999 that DDPM's published networks are told."""
        return (t - 1) * (1000 / self.T)

    def nearest(self, t: Tensor) -> Tensor:
        return t.round()

    def quantile(self, u: Tensor) -> Tensor:
        return (torch.floor(u * self.T) + 1).clamp(max=self.T)

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α(t), σ(t): the tables at whole t, interpolated elsewhere."""
        alphas, sigmas = self._tables(t)
        k = t.long().clamp(max=self.T - 1)
        share = t.to(alphas.dtype) - k
        left, right = (alphas[k], sigmas[k]), (alphas[k + 1], sigmas[k + 1])
        logsnr = torch.lerp(2 * (left[0] / left[1]).log(), 2 * (right[0] / right[1]).log(), share)
        alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        near_data, near_noise = k == 0, right[0] == 0
        sigma = torch.where(near_data, share * right[1], sigma)
        alpha = torch.where(near_data, (1 - sigma**2).sqrt(), alpha)
        alpha = torch.where(near_noise, (1 - share) * left[0], alpha)
        sigma = torch.where(near_noise, (1 - alpha**2).sqrt(), sigma)
        for whole, ends in ((share == 0, left), (share == 1, right)):
            alpha, sigma = torch.where(whole, ends[0], alpha), torch.where(whole, ends[1], sigma)
        return alpha, sigma

    def _tables(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._on_device:
            dtype = torch.float32 if t.device.type == "mps" else torch.float64  # MPS has no float64
            self._on_device[t.device] = (self._alpha.to(t.device, dtype), self._sigma.to(t.device, dtype))
        return self._on_device[t.device]


def check_length(T: int, key: str) -> None:
    """Raises ValueError for a chain of more than 1,000,000 steps, before anything of its length is made."""
    if T > MAX_STEPS:
        raise ValueError(f"{key}: a chain of {T} steps is too long; choose at most {MAX_STEPS} (1000 is usual)")


def _floating(t: Tensor) -> torch.dtype:
    """Of scales at times t: a chain's steps may be counted in whole numbers, its scales may not."""
    return t.dtype if t.is_floating_point() else torch.get_default_dtype()


def _without_terminal_signal(betas: Tensor) -> Tensor:
    if len(betas) < 2:
        raise ValueError("schedule.zero_terminal_snr=true and schedule.T=1: rescaling needs at least two steps")
    root = torch.cumprod(1 - betas, dim=0).sqrt()  # √ᾱ_1 … √ᾱ_T
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return 1 - torch.cat([root[:1], root[1:] / root[:-1]]) ** 2


def _span(values: Tensor) -> str:
    return f"[{values.min():.3g}, {values.max():.3g}]" if values.numel() else "nothing"
