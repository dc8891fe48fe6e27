"""Steps of samplers against the formulas of their papers, restated here for one step or one trajectory."""

import math

import pytest
import torch

from lightning_diffusion.diffusion.analytic import GaussianMixture
from lightning_diffusion.diffusion.denoiser import Counted
from lightning_diffusion.diffusion.process import posterior
from lightning_diffusion.diffusion.samplers.adams_bashforth import AdamsBashforth
from lightning_diffusion.diffusion.samplers.dpm_solver import DPMSolverMultistep, single_step
from lightning_diffusion.diffusion.samplers.edm import EDM
from lightning_diffusion.diffusion.samplers.euler import Euler, Heun
from lightning_diffusion.diffusion.samplers.predictor_corrector import PredictorCorrector
from lightning_diffusion.diffusion.samplers.rk4 import RK4
from lightning_diffusion.diffusion.samplers.unipc import UniPC
from lightning_diffusion.diffusion.time_grid import Karras, LogSNR, Trailing
from tests.diffusion.options import SCHEDULES
from tests.diffusion.truth import F64, mixture, normal_like, points


def edm_algorithm_2(D, x, levels, noise, churn, noise_min, noise_max, noise_scale):
    """EDM Alg. 2 with σ(t) = t and s(t) = 1."""
    N = len(levels) - 1
    for t, t_next in zip(levels[:-1], levels[1:], strict=True):
        gamma = min(churn / N, math.sqrt(2) - 1) if noise_min <= t <= noise_max else 0
        t_hat = t + gamma * t
        if gamma > 0:
            x = x + (t_hat**2 - t**2).sqrt() * noise_scale * noise()
        d = (x - D(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x_next - D(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d + d_next) / 2
        x = x_next
    return x


@pytest.mark.parametrize("churn", [0.0, 3.0, 4.9, 30.0])  # of 12 steps: γ = 0, below √2 − 1 twice, and above it
def test_edm_is_the_papers_algorithm(churn):
    denoiser, options = mixture(SCHEDULES["edm"]), {"churn": churn, "noise_min": 0.05, "noise_max": 50.0}
    x, sampler = 80 * points(16, 2), EDM(Karras(), 12, noise_scale=1.1, **options)
    *_, ours = sampler.walk(denoiser, normal_like(x), start=x)
    expected = edm_algorithm_2(denoiser, x, Karras()(denoiser.schedule, 12), normal_like(x), noise_scale=1.1, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "times"), [("cosine", (1000, 900)), ("jsd", (1000, 800)), ("sub_vp", (0.7, 0.5))])
def test_heun_is_the_trapezoid_of_both_integrals(name, times):
    denoiser, x, (t, s) = mixture(SCHEDULES[name]), points(8, 2), torch.tensor(times, dtype=F64)
    a_t, a_s = (denoiser.schedule.alpha(time) for time in (t, s))
    sig_t, sig_s = (denoiser.schedule.sigma(time) for time in (t, s))
    x_0 = denoiser(x, t)
    eps = (x - a_t * x_0) / sig_t
    y = a_s * x_0 + sig_s * eps
    x_0_s = denoiser(y, s)
    eps_s = (y - a_s * x_0_s) / sig_s
    expected = x + (a_s - a_t) * (x_0 + x_0_s) / 2 + (sig_s - sig_t) * (eps + eps_s) / 2
    torch.testing.assert_close(Heun(Trailing(), 1).step(denoiser, x, t, s, None, None)[0], expected)


def test_heun_on_the_straight_flow_is_heun_in_t():
    denoiser, x, (t, s) = mixture(SCHEDULES["flow"]), points(8, 2), torch.tensor([1.0, 0.8], dtype=F64)

    def velocity(x, t):
        return (x - denoiser(x, t)) / t  # ε̂ − x̂_0

    slope = velocity(x, t)
    expected = x + (s - t) * (slope + velocity(x + (s - t) * slope, s)) / 2
    torch.testing.assert_close(Heun(Trailing(), 1).step(denoiser, x, t, s, None, None)[0], expected)


def test_heun_falls_back_to_euler_where_the_end_would_weigh_more_than_5():
    """Where α = 1 the weight of x̂_0 at the end is ½ (σ_t/σ_s − 1)."""
    for ratio, evaluations in ((10.99, 2), (11.01, 1)):
        counted = Counted(mixture(SCHEDULES["edm"]))
        times = torch.tensor([ratio, 1.0], dtype=F64)
        Heun(Trailing(), 1).step(counted, points(1, 2), *times, None, None)
        assert counted.items == evaluations


def classical_runge_kutta(denoiser, x, t, s):
    """One step of y = x/α over u = σ/α, with the slope ε̂."""
    schedule = denoiser.schedule
    u_t, u_s = (schedule.sigma(time) / schedule.alpha(time) for time in (t, s))
    y, h = x / schedule.alpha(t), u_s - u_t

    def slope(y, u):
        time = schedule.t_of_logsnr(-2 * u.log())
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        return (alpha * y - alpha * denoiser(alpha * y, time)) / sigma

    k_1 = slope(y, u_t)
    k_2 = slope(y + h / 2 * k_1, u_t + h / 2)
    k_3 = slope(y + h / 2 * k_2, u_t + h / 2)
    k_4 = slope(y + h * k_3, u_s)
    return schedule.alpha(s) * (y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4))


@pytest.mark.parametrize(
    ("name", "times"), [("cosine", (800, 500)), ("jsd", (900, 700)), ("sub_vp", (0.7, 0.5)), ("edm", (3.0, 0.2))]
)
def test_rk4_is_the_classical_method_in_sigma_over_alpha(name, times):
    denoiser, x, (t, s) = mixture(SCHEDULES[name]), points(8, 2), torch.tensor(times, dtype=F64)
    expected = classical_runge_kutta(denoiser, x, t, s)
    torch.testing.assert_close(RK4(Trailing(), 1).step(denoiser, x, t, s, None, None)[0], expected)


def test_rk4_loses_no_digits_where_alpha_is_small():
    """The cosine schedule begins at σ/α = 20,000, where x/α in float32 has three digits after the point."""
    exact = mixture(SCHEDULES["cosine"])
    single = GaussianMixture(exact.schedule, exact.weights.float(), exact.means.float(), exact.covariances.float())
    x, (t, s) = points(8, 2), torch.tensor([1000, 980], dtype=F64)
    expected = classical_runge_kutta(exact, x, t, s)
    ours = RK4(Trailing(), 1).step(single, x.float(), t, s, None, None)[0]
    torch.testing.assert_close(ours, expected.float(), rtol=1e-6, atol=1e-6)
    assert (classical_runge_kutta(single, x.float(), t, s) - expected).abs().max() > 1e-5


def test_rk4_falls_back_to_euler_where_the_end_would_weigh_more_than_5():
    """Where α = 1 the weight of x̂_0 at the end is (σ_t/σ_s − 1)/6. It is infinite at time 0 and after α_t = 0."""
    cases = (("edm", 30.99, 1.0, 4), ("edm", 31.01, 1.0, 1), ("edm", 1.0, 0.0, 1), ("jsd", 1000.0, 999.0, 1))
    for name, t, s, evaluations in cases:
        counted, x, times = Counted(mixture(SCHEDULES[name])), points(1, 2), torch.tensor([t, s], dtype=F64)
        x_s, _ = RK4(Trailing(), 1).step(counted, x, *times, None, None)
        assert counted.items == evaluations
        if evaluations == 1:
            torch.testing.assert_close(x_s, Euler(Trailing(), 1).step(counted, x, *times, None, None)[0])


def test_predictor_corrector_steps_by_its_formula():
    denoiser, (t, s), r = mixture(SCHEDULES["vp"]), torch.tensor([0.6, 0.5], dtype=F64), 0.3
    x, schedule = points(8, 2), denoiser.schedule
    q, noise = posterior(schedule, t, s), normal_like(x)
    expected = q.on_x_t * x + q.on_x_0 * denoiser(x, t) + q.var.sqrt() * noise()
    delta = 2 * (r * schedule.sigma(s)) ** 2
    for _ in range(2):
        expected = expected + delta * denoiser.score(expected, s) + (2 * delta).sqrt() * noise()
    sampler = PredictorCorrector(Trailing(), 500, num_corrections=2, target_snr=r)
    torch.testing.assert_close(sampler.step(denoiser, x, t, s, normal_like(x), None)[0], expected)


@pytest.mark.parametrize(("order", "ratio"), [(2, 8), (3, 16)])
def test_a_single_steps_error_falls_with_one_power_more_than_its_order(order, ratio):
    denoiser, x = mixture(SCHEDULES["vp"]), points(16, 2)
    lam, errors = 0.3, []
    for h in (0.1, 0.05, 0.025):
        t, s = denoiser.schedule.t_of_logsnr(2 * torch.tensor([lam, lam + h], dtype=F64))
        exact = denoiser.schedule.t_of_logsnr(2 * torch.linspace(lam, lam + h, 65, dtype=F64))
        y = x
        for a, b in zip(exact[:-1], exact[1:], strict=True):
            y = single_step(denoiser, y, denoiser(y, a), a, b, 3)
        errors.append(float((single_step(denoiser, x, denoiser(x, t), t, s, order) - y).square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize("name", ["cosine", "jsd", "edm"])
@pytest.mark.parametrize(
    "sampler",
    [
        *(DPMSolverMultistep(LogSNR(), 10, order) for order in (1, 2, 3)),
        *(AdamsBashforth(LogSNR(), 10, order) for order in (1, 2, 3, 4)),
        *(UniPC(LogSNR(), 10, order) for order in (1, 2, 3)),
    ],
    ids=lambda sampler: f"{type(sampler).__name__}-{sampler.order}",
)
def test_evaluations_and_steps_are_as_stated(sampler, name):
    counted, calls = Counted(mixture(SCHEDULES[name]).double()), []
    sampler.sample(counted, range(3), (2, 1, 1), seed=0, batch_size=2, on_step=lambda: calls.append(1))
    assert counted.items == 3 * (10 * sampler.evaluations + sampler.start_evaluations)
    assert len(calls) == 2 * (10 + 1)
