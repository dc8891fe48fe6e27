"""The β functions of discrete schedules.

A range (β_1, β_T) applies to T = 1000. For other T it is scaled by 1000/T, so that ᾱ_T stays near 0 and runs with
different T are comparable. Scaled values are clipped at 0.999. Each function raises ValueError for T outside
1 … 1,000,000 and for values out of range.

Ref: Improved DDPM §3.2 for the clipping, its code for the scaling
"""

import torch
from torch import Tensor

from lightning_diffusion.diffusion.discrete import DiscreteSchedule, check_length

MAX_BETA = 0.999


def linear(
    T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, zero_terminal_snr: bool = False
) -> DiscreteSchedule:
    """β_t linear from β_1 to β_T. Ref: DDPM §4

    Args:
        T: number of steps, 1 … 1,000,000.
        beta_1, beta_T: 0 < β_1 ≤ β_T < 1, the range for T = 1000.
        zero_terminal_snr: see DiscreteSchedule.
    """
    _check(T, beta_1, beta_T)
    return _scaled(torch.linspace(beta_1, beta_T, T, dtype=torch.float64), zero_terminal_snr)


def quadratic(
    T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, zero_terminal_snr: bool = False
) -> DiscreteSchedule:
    """√β_t linear from √β_1 to √β_T; "quad" in DDPM's code, "scaled linear" in that of latent diffusion."""
    _check(T, beta_1, beta_T)
    return _scaled(torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2, zero_terminal_snr)


def sigmoid(
    T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, zero_terminal_snr: bool = False
) -> DiscreteSchedule:
    """β_t = β_1 + (β_T − β_1) sigmoid(x), x linear from −6 to 6. Arguments as in `linear`. Ref: GeoDiff's code"""
    _check(T, beta_1, beta_T)
    ramp = torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float64))
    return _scaled(beta_1 + (beta_T - beta_1) * ramp, zero_terminal_snr)


def constant(T: int = 1000, beta: float = 0.01, zero_terminal_snr: bool = False) -> DiscreteSchedule:
    """β_t = β. Ref: DDPM's code, "const"

    Args:
        beta: 0 < β < 1, the value for T = 1000.
    """
    _check_T(T)
    if not 0 < beta < 1:
        raise ValueError(f"schedule.beta={beta}: choose 0 < beta < 1")
    return _scaled(torch.full((T,), beta, dtype=torch.float64), zero_terminal_snr)


def jsd(T: int = 1000) -> DiscreteSchedule:
    """β_t = 1/(T − t + 1), so that ᾱ_t = 1 − t/T falls evenly to exactly 0. Ref: Sohl-Dickstein et al. §2.4.1"""
    _check_T(T)
    return DiscreteSchedule(1 / torch.arange(T, 0, -1, dtype=torch.float64))


def cosine(T: int = 1000, s: float = 0.008, zero_terminal_snr: bool = False) -> DiscreteSchedule:
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), β_t = min(1 − ᾱ_t/ᾱ_{t−1}, 0.999).

    Args:
        T: number of steps, 1 … 1,000,000.
        s: offset in [0, 1) that keeps β_1 away from 0.

    Ref: Improved DDPM Eq. 17
    """
    _check_T(T)
    if not 0 <= s < 1:
        raise ValueError(f"schedule.s={s}: choose 0 <= s < 1 (Improved DDPM uses 0.008)")
    t = torch.arange(T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t / T + s) / (1 + s) * torch.pi / 2) ** 2
    return DiscreteSchedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA), zero_terminal_snr)


def custom(betas: list[float], zero_terminal_snr: bool = False) -> DiscreteSchedule:
    """The given β_1 … β_T without scaling; T is their number."""
    check_length(len(betas), "schedule.betas")
    return DiscreteSchedule(torch.tensor(betas, dtype=torch.float64), zero_terminal_snr, key="schedule.betas")


def _scaled(betas: Tensor, zero_terminal_snr: bool) -> DiscreteSchedule:
    return DiscreteSchedule((betas * (1000 / len(betas))).clamp(max=MAX_BETA), zero_terminal_snr)


def _check(T: int, beta_1: float, beta_T: float) -> None:
    _check_T(T)
    if not 0 < beta_1 <= beta_T < 1:
        raise ValueError(
            f"schedule.beta_1={beta_1}, schedule.beta_T={beta_T}: choose 0 < beta_1 <= beta_T < 1 (DDPM: 1e-4, 0.02)"
        )


def _check_T(T: int) -> None:
    if T < 1:
        raise ValueError(f"schedule.T={T}: the chain needs at least one step, choose T >= 1")
    check_length(T, f"schedule.T={T}")
