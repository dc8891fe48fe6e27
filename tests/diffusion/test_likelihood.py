"""The bound and the flow against the true likelihood of a Gaussian."""

import math

import numpy as np
import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.analytic import FiniteSet
from lightning_diffusion.diffusion.continuous import EDM, VP, RectifiedFlow
from lightning_diffusion.diffusion.likelihood import (
    bits_per_dim,
    flow_log_likelihood,
    log_bin,
    log_ndtr,
    variational_bound,
)
from tests.diffusion.truth import F64, gaussian, mixture, normal_like


def true_bits(denoiser, x_0):
    """−log₂ p(x_0) per dimension; the density of the data itself, at t = 0."""
    zero = torch.tensor(0.0, dtype=F64)
    return -denoiser.log_density(x_0, zero) / (x_0.shape[1] * math.log(2))


def test_bound_approaches_the_true_likelihood_as_1_over_T():
    """With variance β, which is the true one of the reverse step if the noise is small against the data."""
    counts, gaps = (25, 50, 100, 200), []
    for T in counts:
        denoiser = gaussian(schedules.linear(T=T))
        x_0 = denoiser.sample(40_000, torch.Generator().manual_seed(0))
        noise = normal_like(x_0, 1)
        bound = variational_bound(denoiser, x_0, noise, variance="transition", discretized=False)
        gaps.append(float((bound.total - true_bits(denoiser, x_0)).mean()))
    assert all(gap > 0 for gap in gaps), gaps  # it is a bound
    slope = np.polyfit(np.log(counts), np.log(gaps), 1)[0]
    assert slope == pytest.approx(-1, abs=0.2), gaps


def test_parts_of_the_bound():
    denoiser = gaussian(schedules.linear(T=50))
    x_0 = denoiser.sample(4000, torch.Generator().manual_seed(0))
    small, large = (
        variational_bound(denoiser, x_0, normal_like(x_0, 1), variance=variance, discretized=False)
        for variance in ("posterior", "transition")
    )
    torch.testing.assert_close(small.prior, large.prior)
    torch.testing.assert_close(small.decoder, large.decoder)
    assert small.prior.mean() < 1e-3
    assert (large.steps > 0).all()
    with pytest.raises(ValueError, match="variational_bound and schedule: this schedule is continuous"):
        variational_bound(gaussian(VP()), x_0, normal_like(x_0))


def test_discretized_decoder_is_a_distribution_over_the_256_levels():
    levels = torch.linspace(-1, 1, 256, dtype=F64)
    for mean, std in ((0.3, 0.01), (-0.99, 0.1), (0.0, 5.0), (0.4, 1e3), (0.4, 1e5), (1.2, 1e-3)):
        log_p = log_bin(levels, torch.full_like(levels, mean), torch.full_like(levels, std))
        assert torch.isfinite(log_p).all() or std == 1e-3
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_gradient_of_the_log_of_the_distribution_function_is_the_hazard_rate():
    z = torch.tensor([3.0, 0.0, -0.99, -1.01, -10, -1e2, -1e3, -1e4, -1e6, -1e9]).requires_grad_()
    (found,) = torch.autograd.grad(log_ndtr(z).sum(), z)
    x = z.detach().double()
    expected = torch.where(x < -40, -x, torch.exp(-(x**2) / 2 - torch.special.log_ndtr(x)) / math.sqrt(2 * math.pi))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("std", [1e-5, 1e-3, 1.0, 10.0, 1e4, 1e9])
@pytest.mark.parametrize("mean", [0.0, -1.0, 1.0, 30.0, -1e5])
def test_bins_of_any_distribution_have_a_finite_probability_and_gradient(mean, std):
    x = torch.linspace(-1, 1, 256)
    mean, std = torch.full_like(x, mean).requires_grad_(), torch.full_like(x, std).requires_grad_()
    log_p = log_bin(x, mean, std)
    gradients = torch.autograd.grad(log_p.sum(), (mean, std))
    assert all(torch.isfinite(values).all() for values in (log_p, *gradients))


def test_float32_gives_the_probabilities_of_wide_and_narrow_bins():
    levels = torch.linspace(-1, 1, 256, dtype=F64)
    for mean, std in ((0.3, 0.02), (0.3, 0.3), (-0.5, 1.5), (0.2, 40.0), (0.0, 1e4)):
        expected = log_bin(levels, torch.full_like(levels, mean), torch.full_like(levels, std))
        found = log_bin(levels.float(), torch.full((256,), mean), torch.full((256,), std))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_a_single_image_needs_few_bits():
    """If the data is one image, x̂_0 is exact at every step, and the KL of every step is 0."""
    image = torch.tensor([[-1.0, 1 / 255, 1.0]], dtype=F64)
    denoiser = FiniteSet(schedules.linear(T=100), image)
    bound = variational_bound(denoiser, image, normal_like(image))
    assert float(bound.steps) < 1e-12
    # σ_1 = √0.001 against half a bin of 1/255; the bins of −1 and 1 are open to one side
    half = 1 / 255 / 0.001**0.5
    inner, outer = math.erf(half / 2**0.5), 0.5 + 0.5 * math.erf(half / 2**0.5)
    assert float(bound.decoder) == pytest.approx(-(math.log2(inner) + 2 * math.log2(outer)) / 3)
    assert float(bound.prior) < 1e-4


@pytest.mark.parametrize(  # no signal left at T; EDM's usual 80 leaves the mean, 0.005 bits
    "schedule", [VP(beta_max=40.0), RectifiedFlow(), EDM(sigma_max=5000.0)], ids=["vp", "flow", "edm"]
)
@pytest.mark.parametrize("truth", [gaussian, mixture])
def test_flow_likelihood_is_the_true_one(schedule, truth):
    denoiser = truth(schedule)
    x_0 = denoiser.sample(16, torch.Generator().manual_seed(0))
    log_p = flow_log_likelihood(denoiser, x_0, normal_like(x_0), num_probes=None, tolerance=1e-7, t_start=1e-6)
    error = -log_p / (x_0.shape[1] * math.log(2)) - true_bits(denoiser, x_0)
    assert float(error.abs().max()) < 1e-3, error


def test_hutchinsons_estimator_is_unbiased():
    denoiser = gaussian(VP())
    x_0 = denoiser.sample(1, torch.Generator().manual_seed(0)).expand(400, 3)
    options = {"tolerance": 1e-5, "t_start": 1e-5}
    exact = flow_log_likelihood(denoiser, x_0[:1], normal_like(x_0[:1]), num_probes=None, **options)
    estimates = flow_log_likelihood(denoiser, x_0, normal_like(x_0), **options)
    assert estimates.std() > 0
    assert abs(float(estimates.mean() - exact)) < 5 * float(estimates.std()) / 400**0.5


def test_bits_per_dim_of_the_uniform_density():
    """The uniform density on [−1, 1] costs log₂ 255 bits: its 256 levels span 255 widths."""
    log_p = torch.tensor([-10 * math.log(2.0)])  # density ½ in each of ten dimensions
    assert float(bits_per_dim(log_p, 10)) == pytest.approx(math.log2(255))
