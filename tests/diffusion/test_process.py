"""The (α, σ) kernels equal DDPM's formulas in float64 for every discrete schedule and T."""

import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.process import marginal, posterior, transition
from tests.diffusion.options import SCHEDULES, make, times

T_VALUES = (1, 2, 10, 100, 1000, 4000)
BETAS = {
    "linear": lambda T: torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * 1000 / T,
    "quadratic": lambda T: torch.linspace(1e-2, 0.02**0.5, T, dtype=torch.float64) ** 2 * 1000 / T,
    "scaled_linear": lambda T: torch.linspace(8.5e-4**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2 * 1000 / T,
    "sigmoid": lambda T: (1e-4 + 0.0199 / (1 + torch.exp(-torch.linspace(-6, 6, T, dtype=torch.float64)))) * 1000 / T,
    "constant": lambda T: torch.full((T,), 0.01, dtype=torch.float64) * 1000 / T,
    "jsd": lambda T: torch.tensor([1 / (T - t + 1) for t in range(1, T + 1)], dtype=torch.float64),
    "cosine": lambda T: cosine_betas(T),
}
CASES = [
    (name, T, zero)
    for name in BETAS
    for T in T_VALUES
    for zero in (False, True)
    if not zero or (T > 1 and name != "jsd")
]


def cosine_betas(T):
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * torch.pi / 2) ** 2
    return 1 - f[1:] / f[:-1]


def ddpm_tables(name, T, zero):
    """β, α = 1 − β and ᾱ of the DDPM paper, computed from its definitions only."""
    beta = BETAS[name](T)
    beta = beta if name == "jsd" else beta.clamp(max=0.999)
    if zero:  # Ref: Common Diffusion Noise Schedules … Are Flawed, Alg. 1
        root = torch.cumprod(1 - beta, 0).sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        beta = 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
    return beta, 1 - beta, torch.cumprod(1 - beta, 0)


def build(name, T, zero):
    return make(name, T=T, **({"zero_terminal_snr": True} if zero else {}))


@pytest.mark.parametrize(("name", "T", "zero"), CASES)
def test_kernels_equal_ddpm_equations(name, T, zero):
    beta, alpha, alpha_bar = ddpm_tables(name, T, zero)
    schedule = build(name, T, zero)
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


@pytest.mark.parametrize(("name", "T", "zero"), CASES)
def test_transitions_compose_to_the_marginal(name, T, zero):
    schedule = build(name, T, zero)
    t = torch.arange(1, T + 1, dtype=torch.float64)
    alpha, var = 1.0, 0.0
    for alpha_step, var_step in zip(*(kernel.tolist() for kernel in transition(schedule, t, t - 1)), strict=True):
        alpha, var = alpha * alpha_step, alpha_step**2 * var + var_step
    assert alpha == pytest.approx(float(schedule.alpha(schedule.end)), rel=1e-10, abs=1e-12)
    assert var == pytest.approx(float(schedule.sigma(schedule.end)) ** 2, rel=1e-10)


def test_marginal_has_the_stated_moments():
    schedule = schedules.linear()
    t = torch.tensor([1.0, 300.0, 1000.0])
    x_0 = torch.full((3, 1, 200, 200), 0.5)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(x_t.mean((1, 2, 3)), 0.5 * schedule.alpha(t), rtol=0, atol=0.02)
    torch.testing.assert_close(x_t.std((1, 2, 3)), schedule.sigma(t), rtol=0.02, atol=0)


def test_small_noise_does_not_cancel():
    """σ at t = 1 equals √β_1 to all digits of float64; 1 − ᾱ would lose half of them."""
    beta_1 = 1e-4 * 1000 / 100_000
    sigma = schedules.linear(T=100_000).sigma(torch.tensor(1.0, dtype=torch.float64))
    assert abs(float(sigma) ** 2 / beta_1 - 1) < 1e-14


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_respacing_has_the_long_chains_marginals(name):
    """Transitions between any times of any schedule compose to the marginal, and each satisfies Bayes' rule."""
    schedule = SCHEDULES[name]
    t = torch.cat([torch.zeros(1, dtype=torch.float64), times(schedule, 13)])
    alpha, var = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for s, r in zip(t[:-1], t[1:], strict=True):
        kernel = transition(schedule, r, s)
        alpha, var = alpha * kernel.alpha, kernel.alpha**2 * var + kernel.var
        q = posterior(schedule, r, s)
        # q(x_s | x_t, x_0) averaged over q(x_t | x_0) is q(x_s | x_0)
        torch.testing.assert_close(q.on_x_t * schedule.alpha(r) + q.on_x_0, schedule.alpha(s), rtol=1e-10, atol=1e-12)
        total = q.var + (q.on_x_t * schedule.sigma(r)) ** 2
        torch.testing.assert_close(total, schedule.sigma(s) ** 2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(alpha, schedule.alpha(t[-1]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(var, schedule.sigma(t[-1]) ** 2, rtol=1e-10, atol=1e-12)
