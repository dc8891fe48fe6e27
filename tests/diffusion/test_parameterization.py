"""A prediction leads back to x_0 at every t, on every schedule where it may be used; elsewhere it is refused."""

import pytest
import torch
from torch import nn

from src.diffusion import beta as schedules
from src.diffusion.denoiser import NetworkDenoiser, to_eps
from src.diffusion.parameterization import EDM, X0, Eps, Flow, PosteriorMean, Score, V
from src.diffusion.process import marginal, posterior
from tests.diffusion.options import SCHEDULES, times

PREDICTIONS = [Eps(), X0(), V(), Score(), Flow(), PosteriorMean(), EDM()]


def legal(parameterization, schedule):
    try:
        parameterization.check(schedule)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("parameterization", PREDICTIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_perfect_prediction_leads_back_at_every_t_or_is_refused(name, parameterization):
    schedule = SCHEDULES[name]
    ends_without_signal = schedule.terminal_snr() == 0
    refused = {"eps", "score"} if ends_without_signal else set()
    refused |= set() if schedule.discrete else {"mean"}
    assert legal(parameterization, schedule) == (parameterization.name not in refused)
    if parameterization.name in refused:
        with pytest.raises(ValueError, match=rf"parameterization={parameterization.name} and schedule: .*choose"):
            NetworkDenoiser(nn.Identity(), schedule, parameterization)
        return
    t = times(schedule, 1000)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(len(t), 3, dtype=torch.float64, generator=generator) for _ in range(2))
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    target = parameterization.target(schedule, x_0, eps, t)
    # the last of the digits that survive a division by α or by σ is lost where those are small
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(parameterization.to_x0(schedule, target, x_t, t), x_0, **close)


@pytest.mark.parametrize("parameterization", PREDICTIONS, ids=lambda p: p.name)
def test_all_predictions_convert_into_each_other(parameterization):
    """x_t and any prediction give x_0 and ε, and these give any other prediction: ten digits are left in the middle."""
    schedule, t = schedules.linear(), torch.arange(1, 701, dtype=torch.float64)
    x_0, eps = (torch.randn(len(t), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = marginal(x_0, eps, alpha, sigma)
    x0_hat = parameterization.to_x0(schedule, parameterization.target(schedule, x_0, eps, t), x_t, t)
    eps_hat = to_eps(x0_hat, x_t, alpha, sigma)
    for other in PREDICTIONS:
        expected = other.target(schedule, x_0, eps, t)
        torch.testing.assert_close(other.target(schedule, x0_hat, eps_hat, t), expected, rtol=1e-10, atol=1e-10)


def test_posterior_mean_is_the_ddpms():
    schedule, t = schedules.cosine(), torch.arange(1, 1001, dtype=torch.float64)
    x_0, eps = (torch.randn(1000, 3, dtype=torch.float64) for _ in range(2))
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    q = posterior(schedule, t, t - 1)
    mean = q.on_x_t[:, None] * x_t + q.on_x_0[:, None] * x_0
    torch.testing.assert_close(PosteriorMean().target(schedule, x_0, eps, t), mean)


def test_edm_preconditioning_is_the_papers_table():
    """Ref: EDM Table 1, written down from it, on EDM's own schedule."""
    schedule, sd = SCHEDULES["edm"], 0.5
    sigma = torch.logspace(-2, 1.5, 20, dtype=torch.float64)
    x_0, eps = (torch.randn(20, 3, dtype=torch.float64) for _ in range(2))
    x, s = x_0 + sigma[:, None] * eps, sigma[:, None]
    c_skip, c_out, c_in = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt(), 1 / (s**2 + sd**2).sqrt()
    torch.testing.assert_close(EDM().target(schedule, x_0, eps, sigma), (x_0 - c_skip * x) / c_out)
    torch.testing.assert_close(EDM().input_scale(schedule, sigma), c_in[:, 0])
    F = torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(EDM().to_x0(schedule, F, x, sigma), c_skip * x + c_out * F)
    torch.testing.assert_close(schedule.network_time(sigma), 1000 * sigma.log() / 4)


def test_v_is_the_velocity_of_the_angle():
    """v = dx/dφ on the circle α = cos φ, σ = sin φ. Ref: Progressive Distillation, App. D"""

    class Circle(type(SCHEDULES["flow"])):
        def alpha(self, t):
            return t.cos()

        def sigma(self, t):
            return t.sin()

    phi = torch.tensor(0.7, dtype=torch.float64)
    x_0, eps = torch.randn(2, 5, dtype=torch.float64)
    _, velocity = torch.func.jvp(lambda p: p.cos() * x_0 + p.sin() * eps, (phi,), (torch.ones_like(phi),))
    torch.testing.assert_close(V().target(Circle(), x_0, eps, phi), velocity)
