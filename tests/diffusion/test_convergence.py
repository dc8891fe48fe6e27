"""Every sampler against exact solutions: the deterministic ones by their measured order, the others in distribution."""

import math

import pytest
import torch

from lightning_diffusion.diffusion.analytic import Gaussian
from lightning_diffusion.diffusion.samplers.adams_bashforth import AdamsBashforth
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.ddpm import DDPM
from lightning_diffusion.diffusion.samplers.dpm_solver import DPMSolverMultistep, DPMSolverSDE, DPMSolverSinglestep
from lightning_diffusion.diffusion.samplers.edm import EDM
from lightning_diffusion.diffusion.samplers.euler import Euler, Heun
from lightning_diffusion.diffusion.samplers.predictor_corrector import PredictorCorrector
from lightning_diffusion.diffusion.samplers.unipc import UniPC
from lightning_diffusion.diffusion.time_grid import LogSNR, Trailing
from tests.diffusion.options import SCHEDULES
from tests.diffusion.truth import F64, gaussian, mixture, points, probability_flow

GRID = Trailing()
DETERMINISTIC = {
    "euler": Euler(GRID, 50),
    "ddim": DDIM(GRID),
    "heun": Heun(GRID, 50),
    "edm": EDM(GRID),
    "dpm_singlestep": DPMSolverSinglestep(GRID),
    **{f"dpm_multistep_{order}": DPMSolverMultistep(GRID, order=order) for order in (1, 2, 3)},
    **{f"adams_bashforth_{order}": AdamsBashforth(GRID, order=order) for order in (1, 2, 3, 4)},
    **{f"unipc_{order}": UniPC(GRID, order=order) for order in (1, 2, 3)},
}
STEPS = (80, 160, 320)
LATER = {"unipc_3": (320, 480, 640), "dpm_multistep_3": (320, 480, 640)}  # their errors are still bending at 80 steps
FINEST = 1920


def even_times(schedule, num_steps, level=6.0):
    """Even in the log-SNR, from σ/α = level."""
    return schedule.t_of_logsnr(torch.linspace(-2 * math.log(level), 3, num_steps + 1, dtype=F64))


def error(sampler, denoiser, exact, times):
    """Root mean square error at times[-1], from the first step on."""
    *_, x = sampler.walk(denoiser, None, start=exact[0], times=times)
    return float((x - exact[-1]).square().mean().sqrt())


def measured_order(name, denoiser, solve, level=6.0):
    """The slope of log error against log step, over times that are even in the log-SNR."""
    counts, errors = LATER.get(name, STEPS) if level > 1 else (20, 40, 80), []
    for n in counts:
        times = even_times(denoiser.schedule, n, level)
        errors.append(error(DETERMINISTIC[name], denoiser, solve(times), times))
    steps = torch.tensor(counts, dtype=F64).log()
    logs = torch.tensor(errors, dtype=F64).log()
    return -float(((steps - steps.mean()) * (logs - logs.mean())).sum() / (steps - steps.mean()).square().sum())


@pytest.mark.parametrize("level", [pytest.param(6.0, marks=pytest.mark.slow), 0.7])  # the mixture starts from 6 too
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_gaussian(name, level):
    """From high noise, where x̂_0 hardly changes and a start of low order hardly shows, and from low noise."""
    denoiser, x = gaussian(SCHEDULES["shifted_cosine"]), points(16, 3)
    order = measured_order(name, denoiser, lambda times: [x, denoiser.transport(x, times[0], times[-1])], level)
    assert abs(order - DETERMINISTIC[name].order) < 0.2, order


@pytest.fixture(scope="module")
def mixture_solution():
    """The flow at all the times of the finest grid, which the coarser ones share."""
    denoiser, x = mixture(SCHEDULES["shifted_cosine"]), points(16, 2)
    return denoiser, probability_flow(denoiser, x, even_times(denoiser.schedule, FINEST))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_mixture(name, mixture_solution):
    denoiser, solution = mixture_solution
    order = measured_order(name, denoiser, lambda times: solution[:: FINEST // (len(times) - 1)])
    assert abs(order - DETERMINISTIC[name].order) < 0.2, order


N = 50_000
STOCHASTIC = {
    "ddpm_posterior": (DDPM(LogSNR(), 400), "vp"),
    "ddpm_transition": (DDPM(LogSNR(), 400, variance="transition"), "vp"),
    "ddim_eta_half": (DDIM(LogSNR(), 400, eta=0.5), "vp"),
    "edm_churn": (EDM(LogSNR(), 200, churn=40), "edm"),
    "dpm_sde": (DPMSolverSDE(LogSNR(), 200), "vp"),
    "predictor_corrector": (PredictorCorrector(LogSNR(), 400, target_snr=0.05), "vp"),
}


LONG = {
    "ddpm_posterior",
    "predictor_corrector",
    "ddpm_transition",
    "ddim_eta_half",
    "edm_churn",
}  # their variance is met by default too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in STOCHASTIC]
)
def test_distribution_of_the_mixture_is_recovered(name):
    """Mean, covariance and component weights within five standard errors of 60,000 samples."""
    sampler, schedule = STOCHASTIC[name]
    denoiser = mixture(SCHEDULES[schedule])
    generator = torch.Generator().manual_seed(0)
    *_, x = sampler.walk(denoiser, lambda: torch.randn(N, 2, dtype=F64, generator=generator))
    truth = denoiser.sample(2_000_000, torch.Generator().manual_seed(1))

    mean_error = (x.mean(0) - denoiser.weights @ denoiser.means) / (x.std(0) / N**0.5)
    assert mean_error.abs().max() < 5, mean_error

    def products(y):
        centred = y - truth.mean(0)
        return torch.stack([centred[:, 0] ** 2, centred[:, 1] ** 2, centred[:, 0] * centred[:, 1]], dim=1)

    p, q = products(x), products(truth)
    covariance_error = (p.mean(0) - q.mean(0)) / (p.var(0) / N + q.var(0) / len(truth)).sqrt()
    assert covariance_error.abs().max() < 5, covariance_error

    component = denoiser.responsibilities(x, torch.tensor(1e-3, dtype=F64)).argmax(1)
    shares = component.bincount(minlength=3) / N
    weight_error = (shares - denoiser.weights) / (denoiser.weights * (1 - denoiser.weights) / N).sqrt()
    assert weight_error.abs().max() < 5, weight_error

    for k in range(3):  # the spread inside each component, which is where noise of the wrong size shows
        inside = x[component == k]
        ratio = inside.var(0) / denoiser.covariances[k].diag() - 1
        assert (ratio.abs() / math.sqrt(2 / len(inside))).max() < 5, (k, ratio)


def exact_moments(sampler, denoiser, num_steps):
    """Mean and variance of a sampler's output on one-dimensional Gaussian data, without a single random draw.

    There the whole walk is affine in its noise: one batch in which item j is given 1 at the j-th draw and 0 at all
    others, and the last 0 throughout, reads off every coefficient.
    """
    sampler.num_steps, calls, size = num_steps, iter(range(10**6)), 2 * num_steps + 3

    def noise():
        unit, call = torch.zeros(size, 1, dtype=F64), next(calls)
        assert call < size - 1
        unit[call] = 1
        return unit

    *_, x = sampler.walk(denoiser, noise)
    return float(x[-1]), float((x[:-1] - x[-1]).square().sum())


@pytest.mark.parametrize("name", STOCHASTIC)
def test_variance_of_a_gaussian_is_met_as_closely_as_the_steps_allow(name):
    """The bias falls as 1/N, and nothing is left in the limit: noise that is 2% too large would leave up to 4%."""
    sampler, schedule = STOCHASTIC[name]
    mean, variance = torch.tensor([0.4], dtype=F64), torch.tensor([[0.3]], dtype=F64)
    denoiser = Gaussian(SCHEDULES[schedule], mean, variance)
    kept = sampler.num_steps
    (_, coarse), (reached_mean, fine) = (exact_moments(sampler, denoiser, n) for n in (300, 600))
    sampler.num_steps = kept
    coarse, fine = coarse / 0.3 - 1, fine / 0.3 - 1
    assert abs(reached_mean - 0.4) < 4e-3
    assert abs(fine) < 0.02, (coarse, fine)
    assert abs(2 * fine - coarse) < 4e-3, (coarse, fine)  # Richardson's extrapolation to N → ∞
