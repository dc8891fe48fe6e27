import pytest
import torch
from torch import nn

from src.diffusion import schedule as schedules
from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.parameterization import X0, Eps, V
from src.diffusion.process import marginal


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()])
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_a_perfect_prediction_leads_back_to_x0_at_every_t(parameterization, make):
    schedule = make()
    t = torch.arange(1, 1001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(1000, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = marginal(x_0, eps, alpha, sigma)
    back = parameterization.to_x0(parameterization.target(x_0, eps, alpha, sigma), x_t, alpha, sigma)
    torch.testing.assert_close(back, x_0, rtol=1e-10, atol=1e-10)


def test_v_is_the_velocity_of_the_angle():
    """v = dx/dφ on the circle α = cos φ, σ = sin φ. Ref: Progressive Distillation, App. D"""
    phi = torch.tensor(0.7, dtype=torch.float64)
    x_0, eps = torch.randn(2, 5, dtype=torch.float64)
    _, velocity = torch.func.jvp(lambda p: p.cos() * x_0 + p.sin() * eps, (phi,), (torch.ones_like(phi),))
    torch.testing.assert_close(V().target(x_0, eps, phi.cos(), phi.sin()), velocity)


def test_eps_is_refused_where_no_signal_is_left():
    schedule = schedules.DiscreteSchedule(torch.tensor([0.5, 1.0]))  # zero terminal SNR
    with pytest.raises(ValueError, match="parameterization=eps and schedule.*choose parameterization=v"):
        NetworkDenoiser(nn.Identity(), schedule, Eps())
    NetworkDenoiser(nn.Identity(), schedule, V())
