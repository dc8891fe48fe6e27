"""The reverse process and learned variance."""

import math

import diffusers
import pytest
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.denoiser import Denoiser, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import ClassifierFree, Clip
from lightning_diffusion.diffusion.likelihood import bound_of_step, divergence, variational_bound
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.objective import Objective
from lightning_diffusion.diffusion.parameterization import X0, Eps, V
from lightning_diffusion.diffusion.process import marginal, posterior, transition
from lightning_diffusion.diffusion.reverse import between, reverse
from lightning_diffusion.diffusion.samplers.ddpm import DDPM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.diffusion.time_sampler import Uniform
from lightning_diffusion.diffusion.weighting import Simple
from tests.diffusion.options import SCHEDULES
from tests.diffusion.test_samplers import PAIRS, SHAPE, reference
from tests.diffusion.truth import F64, gaussian, normal_like


def time(t):
    return torch.tensor(float(t), dtype=F64)


class TwoOutputs(torch.nn.Module):
    """A network whose prediction and variance depend on x, time and class."""

    outputs, num_classes = 2, 10

    def forward(self, x, time, condition):
        output = 0.7 * torch.tanh(x) + 0.1 * torch.sin(time / 100)[:, None, None, None]
        raw = 0.8 * torch.cos(3 * x)
        return torch.cat(
            [output, raw if condition is None else raw + 0.01 * condition.label[:, None, None, None]], dim=1
        )


def test_share_0_is_the_posteriors_variance_and_1_the_transitions():
    schedule, zeros = schedules.linear(), torch.zeros(1, dtype=F64)
    for t, s in ((1000, 999), (500, 400), (2, 1)):
        t, s = time(t), time(s)
        torch.testing.assert_close(between(schedule, t, s, zeros)[0], posterior(schedule, t, s).var)
        torch.testing.assert_close(between(schedule, t, s, zeros + 1)[0], transition(schedule, t, s).var)
    assert float(between(schedule, time(1), time(0), zeros)) == pytest.approx(
        float(posterior(schedule, time(2), time(1)).var)
    )
    assert torch.isfinite(between(schedules.linear(T=1), time(1), time(0), zeros)).all()


@pytest.mark.parametrize(("parameterization", "prediction_type"), PAIRS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_learned_variance_equals_diffusers_step_by_step(make, parameterization, prediction_type):
    network, schedule = TwoOutputs(), make()
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    theirs = reference(diffusers.DDPMScheduler, make, prediction_type, clip=False, variance_type="learned_range")
    sampler = DDPM(Trailing(), variance="learned")
    generator = torch.Generator().manual_seed(0)
    for t in (1000, 999, 500, 20, 2, 1):
        x_t = torch.randn(2, *SHAPE, generator=generator)
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
        x_s, _ = sampler.step(denoiser, x_t, time(t), time(t - 1), lambda z=z: z, None)
        output = network(x_t, torch.full((2,), t - 1.0), None)
        expected = theirs.step(output, t - 1, x_t, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(x_s, expected, rtol=1e-5, atol=1e-5)


def draws_of(denoiser, t, count=200_000):
    generator = torch.Generator().manual_seed(0)
    x_0 = denoiser.sample(count, generator)
    eps = torch.randn(x_0.shape, dtype=F64, generator=generator)
    return x_0, marginal(x_0, eps, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t))


@pytest.mark.parametrize("t", [2, 10, 40])
def test_the_true_variance_minimizes_the_bound(t):
    """For Gaussian data the reverse step is Gaussian, with variance β̃ + (∂mean/∂x_0)² Var(x_0 | x_t)."""
    denoiser, t = gaussian(schedules.linear(T=50)), time(t)
    schedule, s = denoiser.schedule, t - 1
    x_0, x_t = draws_of(denoiser, t)
    covariance, alpha, sigma = denoiser.covariances[0], schedule.alpha(t), schedule.sigma(t)
    left = torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(3, dtype=F64) * alpha**2 / sigma**2)
    q = posterior(schedule, t, s)
    log_var = (q.var + q.on_x_0**2 * left.diag()).log().requires_grad_()

    def gradient(log_var):
        terms = divergence(schedule, x_0, denoiser(x_t, t), log_var.exp().expand_as(x_0), t, s)
        return torch.autograd.grad(terms.mean(0).sum(), log_var)[0]

    se = 0.5 * math.sqrt(2 / len(x_0))
    assert (gradient(log_var).abs() < 5 * se).all()
    assert (gradient(log_var + 0.1) > 5 * se).any()
    assert (gradient(log_var - 0.1) < -5 * se).any()


class ExactVariance(Denoiser):
    """The exact denoiser of a Gaussian of independent dimensions, and the share that makes the reverse step exact."""

    learns_variance = True

    def __init__(self, inner):
        super().__init__()
        self.inner, self.schedule = inner, inner.schedule

    def forward(self, x_t, t, condition=None):
        return self.inner(x_t, t)

    def with_share(self, x_t, t, condition=None):
        c = self.inner.covariances[0].diag()
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        left = c * sigma**2 / (alpha**2 * c + sigma**2)
        q = posterior(self.schedule, t, t - 1)
        true = q.var + q.on_x_0**2 * left
        low, high = (between(self.schedule, t, t - 1, torch.tensor(v, dtype=F64)).log() for v in (0.0, 1.0))
        return self(x_t, t), ((true.log() - low) / (high - low)).expand_as(x_t)


def test_the_right_variance_makes_the_bound_tight():
    """With it, even a chain of ten steps gives the likelihood; the fixed variances leave a gap."""
    from lightning_diffusion.diffusion.analytic import Gaussian

    exact = Gaussian(
        schedules.linear(T=10), torch.tensor([0.5, -0.2], dtype=F64), torch.tensor([0.3, 0.05], dtype=F64).diag()
    )
    x_0 = exact.sample(100_000, torch.Generator().manual_seed(0))
    bits = -exact.log_density(x_0, time(0)).mean() / (2 * math.log(2))
    gaps = {
        variance: float(
            variational_bound(
                ExactVariance(exact), x_0, normal_like(x_0, 1), None, variance, discretized=False
            ).total.mean()
            - bits
        )
        for variance in ("learned", "transition", "posterior")
    }
    assert abs(gaps["learned"]) < 0.02, gaps
    assert gaps["transition"] > 0.05, gaps
    assert gaps["posterior"] > 0.05, gaps


def test_hybrid_loss_teaches_the_variance_and_leaves_the_mean_to_l_simple():
    x_0 = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients = {}
    for vlb_weight in (0.0, 0.5):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(1, 2, 3, padding=1)
        network.outputs = 2
        network.forward = lambda x, time, condition, f=network.forward: f(x)
        denoiser = NetworkDenoiser(network, schedules.cosine(), V())
        objective = Objective(Uniform(), Simple(), vlb_weight=vlb_weight)
        torch.manual_seed(1)
        objective(denoiser, x_0).backward()
        gradients[vlb_weight] = network.weight.grad
    torch.testing.assert_close(gradients[0.5][0], gradients[0.0][0])
    assert (gradients[0.0][1] == 0).all()
    assert (gradients[0.5][1] != 0).any()


class EveryStep(Uniform):
    """t = 1 … T, each once."""

    def quantile(self, u, schedule):
        return torch.arange(1, int(schedule.T) + 1, dtype=u.dtype)


def test_the_loss_of_the_variance_is_the_bound_on_average_over_the_steps():
    T, weight = 10, 0.5
    denoiser = NetworkDenoiser(TwoOutputs(), schedules.cosine(T=T), V())
    x_0 = (torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1).expand(T, 1, 4, 4)
    _, hybrid = Objective(EveryStep(), Simple(), vlb_weight=weight).draw(denoiser, x_0, None, BatchRNG(0))
    _, simple = Objective(EveryStep(), Simple()).draw(denoiser, x_0, None, BatchRNG(0))
    draws = BatchRNG(0)
    draws.uniform(T)
    eps = iter(draws.normal(x_0).flip(0))  # the bound starts at T
    bound = variational_bound(denoiser, x_0[:1], lambda: next(eps)[None], variance="learned")
    expected = weight * (bound.steps + bound.decoder)
    torch.testing.assert_close((hybrid - simple).mean()[None], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, schedule in SCHEDULES.items() if schedule.chain_length])
def test_hybrid_loss_is_finite_at_every_time(name):
    schedule = SCHEDULES[name]
    t = torch.arange(1, int(schedule.T) + 1, dtype=F64)
    x_0 = torch.rand(len(t), 1, 2, 2) * 2 - 1
    x_0[:, :, 0, 0], x_0[:, :, 1, 1] = -1, 1  # the outermost bins
    raw = torch.zeros_like(x_0).requires_grad_()
    estimate = torch.rand(x_0.shape) * 2 - 1
    terms = bound_of_step(schedule, x_0, estimate, between(schedule, t, t - 1, (raw + 1) / 2), t)
    (gradient,) = torch.autograd.grad(terms.sum(), raw)
    assert torch.isfinite(terms).all()
    assert torch.isfinite(gradient).all()


def test_share_comes_from_the_conditional_estimate_of_the_same_evaluation():
    denoiser = NetworkDenoiser(TwoOutputs(), schedules.cosine(), V(), label_dropout=0.1)
    x, t, condition = torch.randn(3, *SHAPE), time(500), by_label(torch.tensor([1, 2, 3]))
    guided = Clip(ClassifierFree(denoiser, scale=3.0))
    x_0, share = guided.with_share(x, t, condition)
    torch.testing.assert_close(share, denoiser.with_share(x, t, condition)[1])
    torch.testing.assert_close(x_0, guided(x, t, condition))
    assert guided.learns_variance
    p = reverse(guided, x, t, t - 1, "learned", condition)
    torch.testing.assert_close(p.var, between(denoiser.schedule, t, t - 1, share))


class OneOutput(torch.nn.Module):
    def forward(self, x, time, condition):
        return x


def test_refusals():
    network, plain = TwoOutputs(), NetworkDenoiser(OneOutput(), schedules.cosine(), X0())
    two = NetworkDenoiser(network, schedules.cosine(), Eps())
    with pytest.raises(ValueError, match="backbone.outputs=2 and schedule"):
        NetworkDenoiser(network, SCHEDULES["vp"], V())
    with pytest.raises(ValueError, match="objective.vlb_weight=0 and backbone.outputs=2"):
        Objective(Uniform(), Simple()).check_denoiser(two)
    with pytest.raises(ValueError, match="objective.vlb_weight=0.1 and backbone.outputs=1"):
        Objective(Uniform(), Simple(), vlb_weight=0.1).check_denoiser(plain)
    with pytest.raises(ValueError, match="sampler.variance=learned: this model was not trained with learned variance"):
        DDPM(Trailing(), variance="learned").check(plain)
    DDPM(Trailing(), variance="learned").check(two)
