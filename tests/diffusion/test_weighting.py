"""A weighting has the same meaning for every prediction: w ‖x̂_0 − x_0‖², whatever the network predicts."""

import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion import parameterization as predictions
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.parameterization import X0, Eps, Flow, PosteriorMean, Score, V
from lightning_diffusion.diffusion.process import marginal, posterior
from lightning_diffusion.diffusion.time_sampler import LogitNormal, LogNormal, Uniform
from lightning_diffusion.diffusion.weighting import EDM, P2, SNR, MinSNR, Sigmoid, Simple, TruncatedSNR, Variational
from tests.diffusion.options import SCHEDULES, times

T = torch.arange(1, 901, dtype=torch.float64)
WEIGHTINGS = [SNR(), TruncatedSNR(), MinSNR(), P2(), EDM(), Sigmoid(), Variational()]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("prediction", [Eps(), X0(), V(), Score(), Flow(), PosteriorMean(), predictions.EDM()])
def test_weighted_output_error_is_the_weighted_error_of_x0(weighting, prediction):
    schedule = schedules.linear()
    x_0, eps, noise = torch.randn(3, len(T), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = marginal(x_0, eps, schedule.alpha(T), schedule.sigma(T))
    output = prediction.target(schedule, x_0, eps, T) + 0.1 * noise
    error = (prediction.to_x0(schedule, output, x_t, T) - x_0).square().sum(1)
    weighted = weighting.of_output(schedule, prediction, T) * (0.1 * noise).square().sum(1)
    torch.testing.assert_close(weighted, weighting.of_x0(schedule, T) * error, rtol=1e-5, atol=0)


def test_weights_are_the_papers():
    schedule = schedules.cosine()
    snr = schedule.logsnr(T).exp()
    close = {"rtol": 1e-5, "atol": 0}
    for weighting, in_eps in (
        (SNR(), torch.ones_like(snr)),
        (MinSNR(5.0), snr.clamp(max=5) / snr),  # Min-SNR-γ Eq. 7
        (P2(1.0, 0.5), 1 / (1 + snr) ** 0.5),  # P2 Eq. 8, relative to L_simple
        (Sigmoid(2.0), torch.sigmoid(2.0 - snr.log())),
    ):
        torch.testing.assert_close(weighting.of_output(schedule, Eps(), T).double(), in_eps, **close)
    torch.testing.assert_close(TruncatedSNR().of_output(schedule, X0(), T).double(), snr.clamp(min=1), **close)
    torch.testing.assert_close(
        EDM(0.5).of_output(SCHEDULES["edm"], predictions.EDM(0.5), T / 100), torch.ones(len(T)), **close
    )
    assert (Simple().of_output(schedule, V(), T) == 1).all()


def test_variational_weight_is_the_kl_divergence_of_the_posteriors():
    """T · KL(q(x_s | x_t, x_0) ‖ q(x_s | x_t, x̂_0)), and half the fall of the SNR. Ref: DDPM Eqs. 5, 8; VDM Eq. 13"""
    schedule, t = schedules.linear(T=100), torch.arange(2, 101, dtype=torch.float64)
    q = posterior(schedule, t, t - 1)
    kl = q.on_x_0**2 / (2 * q.var)
    torch.testing.assert_close(Variational().of_x0(schedule, t), 100 * kl)
    snr = schedule.logsnr(torch.arange(1, 101, dtype=torch.float64)).exp()
    torch.testing.assert_close(Variational().of_x0(schedule, t), 50 * (snr[:-1] - snr[1:]))


@pytest.mark.parametrize("name", ["vp", "flow", "edm", "shifted_cosine"])
def test_continuous_variational_weight_is_the_slope_of_the_snr(name):
    schedule = SCHEDULES[name]
    t, h = times(schedule, 9)[1:-1], 1e-6 * float(schedule.T)
    snr = schedule.logsnr(torch.stack([t - h, t + h])).exp()
    slope = (snr[1] - snr[0]) / (2 * h)
    torch.testing.assert_close(Variational().of_x0(schedule, t), -0.5 * schedule.T * slope, rtol=1e-4, atol=1e-12)


U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def test_training_times_follow_their_distributions():
    t = LogitNormal(loc=0.5, scale=0.8).quantile(U, SCHEDULES["flow"])
    logit = torch.logit(t)
    assert (float(logit.mean()), float(logit.std())) == pytest.approx((0.5, 0.8), abs=2e-3)
    sigma = LogNormal(-1.2, 1.2).quantile(U, SCHEDULES["edm"])
    log_sigma = sigma.clamp(max=79).log()
    assert (float(log_sigma.mean()), float(log_sigma.std())) == pytest.approx((-1.2, 1.2), abs=1e-2)
    log_sigma = Uniform().quantile(U, SCHEDULES["edm"]).log()
    assert (float(log_sigma.min().exp()), float(log_sigma.max().exp())) == pytest.approx((0.002, 80), rel=1e-3)


@pytest.mark.parametrize("sampler", [Uniform(), LogitNormal(), LogNormal()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SCHEDULES)
def test_training_times_are_times_of_the_schedule(name, sampler):
    schedule = SCHEDULES[name]
    u = torch.cat([torch.zeros(1), torch.linspace(0, 1, 500)[:-1], torch.tensor([1 - 2**-24])])
    t = sampler.quantile(u, schedule)
    assert torch.isfinite(t).all()
    assert t.min() > 0
    assert t.max() <= float(schedule.T) * (1 + 1e-6)
    if schedule.chain_length:
        assert torch.equal(t, t.round())


def test_stratified_times_fill_every_stratum_and_keep_the_marginal():
    torch.manual_seed(0)
    schedule, sampler = SCHEDULES["flow"], Uniform(stratified=True)
    draws = torch.stack([sampler(10, schedule, BatchRNG()).t for _ in range(2000)])
    assert ((draws * 10).floor().long().sort(dim=1).values.clamp(max=9) == torch.arange(10)).float().mean() > 0.999
    first = draws[:, 3].sort().values
    assert (first - (torch.arange(2000) + 0.5) / 2000).abs().max() < 1.63 / 2000**0.5  # Kolmogorov–Smirnov, 1%
