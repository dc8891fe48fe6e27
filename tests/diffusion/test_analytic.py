"""The analytic denoisers, against numerical integration and automatic differentiation."""

import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.analytic import FiniteSet, GaussianMixture
from tests.diffusion.options import SCHEDULES
from tests.diffusion.truth import F64, gaussian, mixture, points, probability_flow

TRUTHS = {
    "gaussian": gaussian,
    "mixture": mixture,
    "finite": lambda schedule: FiniteSet(schedule, points(5, 2)),
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("name", ["linear", "vp", "sub_vp", "edm", "flow"])
def test_score_is_the_gradient_of_the_log_density(name, truth):
    """Tweedie's formula ties the denoiser to the density, which is implemented independently."""
    denoiser = TRUTHS[truth](SCHEDULES[name])
    for u in (0.1, 0.5, 0.9):
        t = denoiser.schedule.nearest(torch.tensor(u * float(denoiser.schedule.T), dtype=F64))
        x = points(7, 3 if truth == "gaussian" else 2).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_density(x, t).sum(), x)
        torch.testing.assert_close(denoiser.score(x, t), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("truth", ["mixture", "finite"])
def test_posterior_mean_is_bayes_rule(truth):
    """E[x_0 | x_t] by self-normalized sums over many draws of x_0."""
    schedule = schedules.cosine()
    denoiser, t = TRUTHS[truth](schedule), torch.tensor(400.0, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    x_0 = denoiser.sample(400_000, generator) if isinstance(denoiser, GaussianMixture) else denoiser.points
    x_t = points(4, 2, seed=1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    log_weight = -(x_t[:, None] - alpha * x_0).square().sum(2) / (2 * sigma**2)
    estimate = log_weight.softmax(1) @ x_0
    torch.testing.assert_close(denoiser(x_t, t), estimate, rtol=0, atol=0.01 if truth == "mixture" else 1e-12)


def test_density_integrates_to_one():
    denoiser, t = mixture(schedules.cosine()), torch.tensor(300.0, dtype=F64)
    axis = torch.linspace(-6, 6, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    assert float(denoiser.log_density(grid, t).exp().sum()) * 0.02**2 == pytest.approx(1, abs=1e-9)


def test_samples_have_the_stated_moments():
    denoiser = mixture(schedules.cosine())
    x = denoiser.sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), denoiser.weights @ denoiser.means, rtol=0, atol=0.01)


def test_time_can_differ_between_items():
    denoiser = mixture(schedules.cosine())
    x, t = points(3, 2), torch.tensor([10.0, 500.0, 1000.0], dtype=F64)
    for i in range(3):
        torch.testing.assert_close(denoiser(x, t)[i : i + 1], denoiser(x[i : i + 1], t[i]))


@pytest.mark.parametrize("name", ["vp", "edm", "shifted_cosine", "flow"])
def test_gaussian_transport_is_the_probability_flow(name):
    denoiser = gaussian(SCHEDULES[name])
    times = denoiser.schedule.t_of_logsnr(torch.tensor([-6.0, 0.0, 5.0], dtype=F64))
    x = points(4, 3)
    for reached, t in zip(probability_flow(denoiser, x, times), times, strict=True):
        torch.testing.assert_close(denoiser.transport(x, times[0], t), reached, rtol=1e-9, atol=1e-9)
