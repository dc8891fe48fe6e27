"""The (α, σ) kernels are the DDPM's formulas, in float64, for every discrete schedule and T."""

import pytest
import torch

from src.diffusion import schedule as schedules
from src.diffusion.process import marginal, posterior, transition

CASES = [(make, T) for make in (schedules.linear, schedules.cosine) for T in (1, 2, 10, 100, 1000, 4000)]


def ddpm_tables(make, T):
    """β, α = 1 − β and ᾱ of the DDPM paper, written down from its definitions alone."""
    if make is schedules.linear:
        beta = (torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * 1000 / T).clamp(max=0.999)
    else:
        t = torch.arange(T + 1, dtype=torch.float64)
        f = torch.cos((t / T + 0.008) / 1.008 * torch.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return beta, 1 - beta, torch.cumprod(1 - beta, 0)


@pytest.mark.parametrize(("make", "T"), CASES)
def test_kernels_equal_ddpm_equations(make, T):
    beta, alpha, alpha_bar = ddpm_tables(make, T)
    schedule = make(T=T)
    t = torch.arange(1, T + 1, dtype=torch.float64)
    s = t - 1
    alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    close = {"rtol": 0, "atol": 1e-10}

    # Eq. 4: q(x_t | x_0)
    torch.testing.assert_close(schedule.alpha(t), alpha_bar.sqrt(), **close)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - alpha_bar, **close)
    # Eq. 2: q(x_t | x_{t−1})
    kernel = transition(schedule, t, s)
    torch.testing.assert_close(kernel.alpha, alpha.sqrt(), **close)
    torch.testing.assert_close(kernel.var, beta, **close)
    # Eqs. 6, 7: q(x_{t−1} | x_t, x_0)
    q = posterior(schedule, t, s)
    torch.testing.assert_close(q.on_x_0, alpha_bar_prev.sqrt() * beta / (1 - alpha_bar), **close)
    torch.testing.assert_close(q.on_x_t, alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar), **close)
    torch.testing.assert_close(q.var, (1 - alpha_bar_prev) / (1 - alpha_bar) * beta, **close)


@pytest.mark.parametrize(("make", "T"), CASES)
def test_transitions_compose_to_the_marginal(make, T):
    schedule = make(T=T)
    alpha, var = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t in torch.arange(1, T + 1, dtype=torch.float64):
        kernel = transition(schedule, t, t - 1)
        alpha, var = alpha * kernel.alpha, kernel.alpha**2 * var + kernel.var
    end = torch.tensor(float(T), dtype=torch.float64)
    torch.testing.assert_close(alpha, schedule.alpha(end), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(var, schedule.sigma(end) ** 2, rtol=1e-10, atol=1e-12)


def test_marginal_has_the_stated_moments():
    schedule = schedules.linear()
    t = torch.tensor([1.0, 300.0, 1000.0])
    x_0 = torch.full((3, 1, 200, 200), 0.5)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(x_t.mean((1, 2, 3)), 0.5 * schedule.alpha(t), rtol=0, atol=0.02)
    torch.testing.assert_close(x_t.std((1, 2, 3)), schedule.sigma(t), rtol=0.02, atol=0)


def test_small_noise_does_not_cancel():
    """σ at t = 1 is √β_1 to all digits of float64, where 1 − ᾱ would lose half of them."""
    beta_1 = 1e-4 * 1000 / 100_000
    sigma = schedules.linear(T=100_000).sigma(torch.tensor(1.0, dtype=torch.float64))
    assert abs(float(sigma) ** 2 / beta_1 - 1) < 1e-14
