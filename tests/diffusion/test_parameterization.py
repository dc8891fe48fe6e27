"""A prediction determines x_0 at every t on each schedule that allows it; other schedules are refused."""

import pytest
import torch
from torch import nn

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion import continuous
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser, to_eps
from lightning_diffusion.diffusion.parameterization import EDM, ROUNDING, X0, Eps, Flow, PosteriorMean, Score, V
from lightning_diffusion.diffusion.process import marginal, posterior
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
    refused |= set() if schedule.chain_length else {"mean"}
    assert legal(parameterization, schedule) == (parameterization.name not in refused)
    if parameterization.name in refused:
        with pytest.raises(ValueError, match=rf"parameterization={parameterization.name} and schedule.*: .*choose"):
            NetworkDenoiser(nn.Identity(), schedule, parameterization)
        return
    t = times(schedule, 1000)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(len(t), 3, dtype=torch.float64, generator=generator) for _ in range(2))
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    target = parameterization.target(schedule, x_0, eps, t)
    # divisions by small α or σ lose digits
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(parameterization.to_x0(schedule, target, x_t, t), x_0, **close)


@pytest.mark.parametrize("parameterization", PREDICTIONS, ids=lambda p: p.name)
def test_all_predictions_convert_into_each_other(parameterization):
    """x_t and any prediction give x_0 and ε, and these give any other prediction, to ten digits."""
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
    """The formulas of EDM Table 1 on EDM's schedule."""
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


def rounded(parameterization, schedule, t, x_0, eps):
    """The root mean square error of x̂_0 if everything is float32, as in training."""
    t = t.float().expand(len(x_0))
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    x0_hat = parameterization.to_x0(schedule, parameterization.target(schedule, x_0, eps, t), x_t, t)
    return float((x0_hat - x_0).square().mean().sqrt())


CHAINS = [schedules.linear, schedules.quadratic, schedules.sigmoid, schedules.constant, schedules.cosine]


@pytest.mark.parametrize("parameterization", PREDICTIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("make", CHAINS)
def test_no_chain_that_is_allowed_loses_x0_to_rounding(make, parameterization):
    """At the worst step of each chain. The limit allows 3.3e-3; intermediate float32 roundings add to it."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(256, 16, generator=generator) for _ in range(2))
    for T in [*range(1, 31), 50, 100, 300, 1000, 4000]:
        schedule = make(T=T)
        amplification = parameterization.amplification(schedule, schedule.clock())
        error = rounded(parameterization, schedule, schedule.clock()[amplification.argmax()], x_0, eps)
        assert error < 0.01 or not legal(parameterization, schedule), (T, error)
        if T >= 1000:
            assert legal(parameterization, schedule), T


@pytest.mark.parametrize("parameterization", [Eps(), Score(), PosteriorMean()], ids=lambda p: p.name)
@pytest.mark.parametrize("make", [schedules.linear, schedules.sigmoid])
def test_amplification_is_that_of_rounding(make, parameterization):
    """The error is u A if only output and x_t are rounded to float32 and A exceeds the rounding of float64."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(2000, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    for T, t in ((1000, 1000), (1000, 400), (50, 50), (20, 20), (5, 5)):
        schedule, t = make(T=T), torch.tensor(float(t), dtype=torch.float64)
        x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
        output = parameterization.target(schedule, x_0, eps, t)
        x0_hat = parameterization.to_x0(schedule, output.float().double(), x_t.float().double(), t)
        error = float((x0_hat - x_0).square().mean().sqrt())
        expected = ROUNDING * float(parameterization.amplification(schedule, t))
        assert error == pytest.approx(expected, rel=0.15), T


@pytest.mark.parametrize(
    ("parameterization", "schedule", "words"),
    [
        *((Eps(), schedules.linear(T=T), f"parameterization=eps and schedule.T={T}: at t={T}, ") for T in range(5, 21)),
        (Score(), schedules.constant(T=10), "parameterization=score and schedule.T=10: "),
        (PosteriorMean(), schedules.constant(T=10), "parameterization=mean and schedule.T=10: "),
        (Eps(), schedules.cosine(zero_terminal_snr=True), "parameterization=eps and schedule.zero_terminal_snr=true: "),
        (Eps(), schedules.custom([0.5, 0.999, 0.1, 0.9999999999]), "parameterization=eps and schedule.betas: "),
        (Eps(), schedules.custom([0.5, 1.0, 0.5]), "parameterization=eps and schedule.betas: at t=2, "),
        (PosteriorMean(), schedules.custom([0.5, 1.0, 0.5]), "parameterization=mean and schedule.betas: at t=3, "),
        (PosteriorMean(), schedules.linear(T=100_000), "parameterization=mean and schedule.T=100000: "),
        (Eps(), continuous.EDM(sigma_max=1e6), r"parameterization=eps and schedule.sigma_max=1e\+06: "),
        (Score(), continuous.VP(beta_max=60.0), "parameterization=score and schedule.beta_max=60: at t=1, "),
        (Eps(), continuous.RectifiedFlow(), "parameterization=eps and schedule: at t=1, "),
    ],
)
def test_refusals_name_both_keys_and_a_remedy(parameterization, schedule, words):
    with pytest.raises(ValueError, match=f"^{words}.*choose parameterization=v, parameterization=x0 or a schedule"):
        parameterization.check(schedule)
    for remedy in (V(), X0(), Flow(), EDM()):
        remedy.check(schedule)


class DipsInTheMiddle(type(SCHEDULES["flow"])):
    """A schedule that ends with signal but has almost none in the middle."""

    def alpha(self, t):
        return 1e-8 + ((1 - 2 * t).abs() - 0.1).clamp(min=0)


def test_the_whole_clock_is_looked_at():
    with pytest.raises(ValueError, match=r"parameterization=eps and schedule: at t=0\.(4|5)"):
        Eps().check(DipsInTheMiddle())
