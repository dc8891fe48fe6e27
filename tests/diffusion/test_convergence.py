"""Every sampler of conf/ against exact solutions: the deterministic by their order, the others in distribution.

A new sampler is measured once its yaml is there, by the order that it states in `order`.
"""

import copy
import itertools
import math

import pytest
import torch

from lightning_diffusion.diffusion.analytic import Gaussian
from lightning_diffusion.diffusion.time_grid import LogSNR
from tests.diffusion.options import SCHEDULES, fresh, sampler_variants
from tests.diffusion.truth import F64, gaussian, mixture, points, probability_flow

VARIANTS = sampler_variants() | {
    "ddim eta=0.5": fresh("sampler", "ddim", eta=0.5),
    "edm churn=40": fresh("sampler", "edm", churn=40.0),
    "predictor_corrector": fresh("sampler", "predictor_corrector", target_snr=0.05),  # its usual 0.16 shows as a bias
}
ADAPTIVE = {name: sampler for name, sampler in VARIANTS.items() if sampler.adaptive}
DETERMINISTIC = {name: sampler for name, sampler in VARIANTS.items() if not (sampler.stochastic or sampler.adaptive)}
STEPS = {6.0: [(80, 160, 320), (320, 480, 640)], 0.7: [(20, 40, 80), (80, 160, 320)]}  # from each noise level
FINEST = 1920
TOLERANCE = 0.2  # of an order


def even_times(schedule, num_steps, level=6.0):
    """Times that are even in the log-SNR, from σ/α = level."""
    return schedule.t_of_logsnr(torch.linspace(-2 * math.log(level), 3, num_steps + 1, dtype=F64))


def error(sampler, denoiser, exact, times):
    """Root mean square error at times[-1] of a walk that starts at times[0]."""
    *_, x = sampler.walk(denoiser, None, start=exact[0], times=times)
    return float((x - exact[-1]).square().mean().sqrt())


def measured_order(sampler, denoiser, solve, level=6.0):
    """The slope of log error against log step, over times that are even in the log-SNR.

    Order is a statement about the limit: where the errors still bend at the coarser steps, the finer ones decide.
    """
    for counts in STEPS[level]:
        grids = [even_times(denoiser.schedule, n, level) for n in counts]
        errors = [error(sampler, denoiser, solve(times), times) for times in grids]
        steps, logs = (torch.tensor(values, dtype=F64).log() for values in (counts, errors))
        order = -float(((steps - steps.mean()) * (logs - logs.mean())).sum() / (steps - steps.mean()).square().sum())
        if abs(order - sampler.order) < TOLERANCE:
            break
    return order


@pytest.mark.parametrize("level", [pytest.param(6.0, marks=pytest.mark.slow), 0.7])  # the mixture starts at 6 too
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_gaussian(name, level):
    """From high noise, where x̂_0 hardly changes and hides a start of low order, and from low noise."""
    denoiser, x = gaussian(SCHEDULES["shifted_cosine"]), points(16, 3)
    sampler = DETERMINISTIC[name]
    order = measured_order(sampler, denoiser, lambda times: [x, denoiser.transport(x, times[0], times[-1])], level)
    assert abs(order - sampler.order) < TOLERANCE, order


@pytest.fixture(scope="module")
def mixture_solution():
    """The flow at all the times of the finest grid, which the coarser ones share."""
    denoiser, x = mixture(SCHEDULES["shifted_cosine"]), points(16, 2)
    return denoiser, probability_flow(denoiser, x, even_times(denoiser.schedule, FINEST))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_mixture(name, mixture_solution):
    denoiser, solution = mixture_solution
    sampler = DETERMINISTIC[name]
    order = measured_order(sampler, denoiser, lambda times: solution[:: FINEST // (len(times) - 1)])
    assert abs(order - sampler.order) < TOLERANCE, order


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_an_adaptive_samplers_error_follows_its_tolerance_whatever_its_steps(name, tolerance, mixture_solution):
    sampler, (denoiser, solution) = copy.copy(ADAPTIVE[name]), mixture_solution
    sampler.tolerance = tolerance
    for num_steps in (1, 6):
        times = even_times(denoiser.schedule, num_steps)
        assert error(sampler, denoiser, solution[:: FINEST // num_steps], times) < 10 * tolerance


N = 50_000
STOCHASTIC = [name for name, sampler in VARIANTS.items() if sampler.stochastic and "learned" not in name]
FEWER = {"edm churn=40": 200, "dpm_sde": 200}  # of 400 steps


def walker(name):
    """A sampler with many steps, even in the log-SNR, and the schedule that it is tested on."""
    sampler = copy.copy(VARIANTS[name])
    sampler.time_grid, sampler.num_steps = LogSNR(), FEWER.get(name, 400)
    return sampler, SCHEDULES["edm" if name.startswith("edm") else "vp"]


@pytest.mark.parametrize(  # one by default; the variance of each is measured by default too
    "name", [pytest.param(name, marks=[] if name == "dpm_sde" else [pytest.mark.slow]) for name in STOCHASTIC]
)
def test_distribution_of_the_mixture_is_recovered(name):
    """Mean, covariance and component weights within five standard errors of 50,000 samples."""
    sampler, schedule = walker(name)
    denoiser = mixture(schedule)
    generator = torch.Generator().manual_seed(0)
    *_, x = sampler.walk(denoiser, lambda: torch.randn(N, 2, dtype=F64, generator=generator))
    weights, means = denoiser.weights, denoiser.means
    mean = weights @ means
    second_moments = denoiser.covariances + means[:, :, None] * means[:, None, :]
    covariance = torch.einsum("k,kij->ij", weights, second_moments) - torch.outer(mean, mean)

    mean_error = (x.mean(0) - mean) / (x.std(0) / N**0.5)
    assert mean_error.abs().max() < 5, mean_error

    products = torch.einsum("bi,bj->bij", x - mean, x - mean)
    covariance_error = (products.mean(0) - covariance) / (products.std(0) / N**0.5)
    assert covariance_error.abs().max() < 5, covariance_error

    component = denoiser.responsibilities(x, torch.tensor(1e-3, dtype=F64)).argmax(1)
    shares = component.bincount(minlength=3) / N
    weight_error = (shares - weights) / (weights * (1 - weights) / N).sqrt()
    assert weight_error.abs().max() < 5, weight_error

    for k in range(3):  # the spread inside each component reveals noise of the wrong size
        inside = x[component == k]
        ratio = inside.var(0) / denoiser.covariances[k].diag() - 1
        assert (ratio.abs() / math.sqrt(2 / len(inside))).max() < 5, (k, ratio)


def draws_per_step(sampler, denoiser, num_steps=4):
    sampler.num_steps, draws = num_steps, []
    for _ in sampler.walk(denoiser, lambda: draws.append(1) or torch.zeros(1, 1, dtype=F64)):
        pass
    return math.ceil((len(draws) - 1) / num_steps)


def exact_moments(sampler, denoiser, num_steps):
    """Mean and variance of a sampler's output on one-dimensional Gaussian data, without a single random draw.

    There the whole walk is affine in its noise. One batch reads off every coefficient: item j gets 1 at the j-th draw
    and 0 at all others, and the last item gets 0 throughout.
    """
    sampler.num_steps, calls, size = num_steps, itertools.count(), draws_per_step(sampler, denoiser) * num_steps + 2

    def noise():
        unit, call = torch.zeros(size, 1, dtype=F64), next(calls)
        assert call < size - 1
        unit[call] = 1
        return unit

    *_, x = sampler.walk(denoiser, noise)
    return float(x[-1]), float((x[:-1] - x[-1]).square().sum())


@pytest.mark.parametrize("name", STOCHASTIC)
def test_bias_of_a_gaussians_variance_vanishes_with_the_steps(name):
    """The bias falls as 1/N and vanishes in the limit: noise that is 2% too large would leave up to 4%."""
    sampler, schedule = walker(name)
    denoiser = Gaussian(schedule, torch.tensor([0.4], dtype=F64), torch.tensor([[0.3]], dtype=F64))
    (_, coarse), (reached_mean, fine) = (exact_moments(sampler, denoiser, n) for n in (300, 600))
    coarse, fine = coarse / 0.3 - 1, fine / 0.3 - 1
    assert abs(reached_mean - 0.4) < 4e-3
    assert abs(fine) < 0.02, (coarse, fine)
    assert abs(2 * fine - coarse) < 4e-3, (coarse, fine)  # Richardson's extrapolation to N → ∞
