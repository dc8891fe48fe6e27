"""Schedules on a chain of discrete steps, with tables of α and σ over t = 0 … T."""

import torch
from torch import Tensor

from lightning_diffusion.diffusion.process import first_posterior_variance, posterior
from lightning_diffusion.diffusion.schedule import NoiseSchedule, widest_float

MAX_STEPS = 1_000_000  # of a chain, whose tables are computed step by step


class DiscreteSchedule(NoiseSchedule):
    """The chain q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I), t = 1 … T, as its marginals.

        ᾱ_t = Π_{r≤t} (1 − β_r) ,   α(t) = √ᾱ_t ,   σ(t) = √(1 − ᾱ_t)

    Between whole steps the log-SNR is interpolated linearly. Next to an end where it is infinite, σ (t < 1) or
    α (t > T − 1) is interpolated instead.

    Args:
        betas: β_1 … β_T in (0, 1], shape (T,). Tables are float64; results have the dtype of t.
        zero_terminal_snr: whether to shift and scale √ᾱ so that ᾱ_T = 0 and ᾱ_1 is unchanged. Ref: Common Diffusion
            Noise Schedules and Sample Steps Are Flawed, Alg. 1
        key: see NoiseSchedule; None means schedule.T=… or schedule.zero_terminal_snr=true.

    Raises:
        ValueError: a β outside (0, 1], fewer than two steps to rescale, or more than 1,000,000 steps.

    Ref: DDPM Eqs. 2, 4
    """

    t_min = 1.0

    def __init__(self, betas: Tensor, zero_terminal_snr: bool = False, key: str | None = None) -> None:
        check_length(betas.numel(), "schedule")
        betas = betas.double()
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"schedule: every β must lie in (0, 1], but they span {_span(betas)}; "
                "lower schedule.beta_1 and schedule.beta_T, or choose another schedule"
            )
        betas = _without_terminal_signal(betas) if zero_terminal_snr else betas
        self.betas, self.T, self.chain_length = betas, len(betas), len(betas)
        self.key = key or ("schedule.zero_terminal_snr=true" if zero_terminal_snr else f"schedule.T={self.T}")
        # The recurrence 1 − ᾱ_t = (1 − ᾱ_{t−1})(1 − β_t) + β_t does not cancel at small t.
        one_minus = [0.0]
        for beta in betas.tolist():
            one_minus.append(one_minus[-1] * (1 - beta) + beta)
        self._alpha = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, dim=0)]).sqrt()  # (T + 1,), ᾱ_0 = 1
        self._sigma = torch.tensor(one_minus, dtype=torch.float64).sqrt()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha(self, t: Tensor) -> Tensor:
        return self._between(t)[0].to(_scale_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self._between(t)[1].to(_scale_dtype(t))

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        alphas, sigmas = self._tables(logsnr)
        wanted, table = logsnr.to(alphas.dtype), 2 * (alphas.log() - sigmas.log())  # descends from +∞, possibly to −∞
        k = (torch.searchsorted(-table, -wanted.contiguous()) - 1).clamp(0, self.T - 1)
        t = k + (table[k] - wanted) / (table[k] - table[k + 1])
        t = torch.where(k == 0, torch.sigmoid(-wanted).sqrt() / sigmas[1], t)
        into_noise = (k == self.T - 1) & (alphas[-1] == 0)
        t = torch.where(into_noise, self.T - torch.sigmoid(wanted).sqrt() / alphas[-2], t)
        return t.clamp(0, self.T).to(logsnr.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        """(t − 1) 1000/T; for T = 1000, the time inputs 0 … 999 of DDPM's published networks."""
        return (t - 1) * (1000 / self.T)

    def nearest(self, t: Tensor) -> Tensor:
        return t.round()

    def quantile(self, u: Tensor) -> Tensor:
        return (torch.floor(u * self.T) + 1).clamp(max=self.T)

    def training_time(self, t: Tensor) -> Tensor:
        return self.nearest(t).clamp(1, self.T)

    def clock(self) -> Tensor:
        return torch.arange(1, self.T + 1, dtype=torch.float64)

    def chain(self, needed_by: str, alternative: str) -> Tensor:
        return torch.arange(self.T, -1, -1, dtype=torch.float64)

    def spacing(self, num_steps: int) -> float:
        return self.T // num_steps

    def variational_weight(self, t: Tensor) -> Tensor:
        """T (α_s σ²_{t|s}/σ_t²)²/(2 β̃_t) with s = t − 1, which is ½ T (SNR(s) − SNR(t)).

        At t = 1, where the posterior is a point, β̃_2 replaces its variance. Ref: DDPM Eqs. 5, 8; VDM Eq. 13
        """
        q = posterior(self, t, t - 1)
        var = torch.where(t > 1, q.var, first_posterior_variance(self))
        return self.T * q.on_x_0**2 / (2 * var)

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α(t), σ(t): table entries at whole steps, interpolated elsewhere."""
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
            dtype = widest_float(t.device)
            self._on_device[t.device] = (self._alpha.to(t.device, dtype), self._sigma.to(t.device, dtype))
        return self._on_device[t.device]


def check_length(T: int, key: str) -> None:
    """Raise ValueError for a chain of more than 1,000,000 steps, before anything of that length is allocated."""
    if T > MAX_STEPS:
        raise ValueError(f"{key}: a chain of {T} steps is too long; choose at most {MAX_STEPS} (1000 is usual)")


def _scale_dtype(t: Tensor) -> torch.dtype:
    """The dtype of α and σ at times t: that of t, or torch's default for integer steps."""
    return t.dtype if t.is_floating_point() else torch.get_default_dtype()


def _without_terminal_signal(betas: Tensor) -> Tensor:
    if len(betas) < 2:
        raise ValueError("schedule.zero_terminal_snr=true and schedule.T=1: rescaling needs at least two steps")
    root = torch.cumprod(1 - betas, dim=0).sqrt()  # √ᾱ_1 … √ᾱ_T
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return 1 - torch.cat([root[:1], root[1:] / root[:-1]]) ** 2


def _span(values: Tensor) -> str:
    return f"[{values.min():.3g}, {values.max():.3g}]" if values.numel() else "nothing"
