"""Samplers against the truth: the exact denoiser of a Gaussian, each other, and diffusers step by step."""

import functools
import itertools
import math

import diffusers
import pytest
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.analytic import Gaussian
from lightning_diffusion.diffusion.denoiser import Counted, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import Clip
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.diffusion.parameterization import X0, Eps, V
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.ddpm import DDPM
from lightning_diffusion.diffusion.samplers.dpm_solver import Point, integrals, polynomial
from lightning_diffusion.diffusion.time_grid import Karras, Leading, Linear, LogSNR, Quadratic, Trailing
from tests.diffusion.options import SCHEDULES, make, option, options, sampler_variants
from tests.diffusion.truth import F64

SHAPE = (1, 2, 2)


def gaussian(schedule):
    mean = torch.tensor([0.5, -0.2, 0.0, 0.3], dtype=torch.float64)
    var = torch.tensor([0.04, 0.2, 1.0, 0.5], dtype=torch.float64)
    return Gaussian(schedule, mean, var.diag())


def draws(count, seed=0):
    """Return a function that draws float64 noise for one batch."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator)


def run(sampler, denoiser, count=4, seed=0):
    *_, x = sampler.walk(denoiser, draws(count, seed))
    return x


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ddim_eta_1_is_ancestral_sampling(make):
    denoiser = gaussian(make(T=200))
    for num_steps in (1, 7, 50, 200):
        ancestral = run(DDPM(Trailing(), num_steps), denoiser)
        torch.testing.assert_close(run(DDIM(Trailing(), num_steps, eta=1.0), denoiser), ancestral, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ddim_converges_to_the_probability_flow_at_order_1(make):
    denoiser = gaussian(make(T=10_000))
    x_T = draws(256)()
    exact = denoiser.transport(x_T, denoiser.schedule.end, torch.tensor(0.0, dtype=torch.float64))
    errors = [
        float((run(DDIM(Trailing(), n), denoiser, 256) - exact).square().mean().sqrt()) for n in (25, 50, 100, 200)
    ]
    orders = torch.tensor(errors).log2().diff().neg()
    assert errors[-1] < 0.02
    assert (orders - 1).abs().max() < 0.2, orders


@pytest.mark.parametrize("variance", ["posterior", pytest.param("transition", marks=pytest.mark.slow)])
def test_ddpm_recovers_the_mean_and_variance_of_the_data(variance):
    denoiser, N = gaussian(schedules.cosine()), 4000
    x = run(DDPM(Trailing(), variance=variance), denoiser, N)
    mean, var = denoiser.means[0], denoiser.covariances[0].diag()
    mean_error = (x.flatten(1).mean(0) - mean) / (var / N).sqrt()
    var_error = (x.flatten(1).var(0) / var - 1) / (2 / N) ** 0.5
    assert mean_error.abs().max() < 5  # standard errors
    # with the exact denoiser β̃ omits, and β adds, a share of the posterior's spread that is O(1/T)
    assert var_error.abs().max() < 5 + 1


class Cubic(torch.nn.Module):
    """A smooth network whose output differs at every time."""

    def forward(self, x, time, condition):
        return 0.3 * x - 0.1 * x**3 + 0.05 * torch.sin(time / 100)[:, None, None, None]


PAIRS = [(Eps(), "epsilon"), (X0(), "sample"), (V(), "v_prediction")]


def reference(scheduler_class, make, prediction_type, clip, **options):
    """A scheduler of diffusers, with its tables in float64: in float32, its 1 − ᾱ is off by 1e-4 at small t."""
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[make.__name__]
    scheduler = scheduler_class(
        num_train_timesteps=1000,
        beta_schedule=name,
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=prediction_type,
        **({} if clip is None else {"clip_sample": clip}),
        timestep_spacing="trailing",
        **options,
    )
    if name == "linear":
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    else:  # diffusers computes the cosine's β in double precision and rounds it to float32
        bar = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)], dtype=torch.float64)
    torch.testing.assert_close(scheduler.betas, betas.float())
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    return scheduler


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("parameterization", "prediction_type"), PAIRS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ddpm_equals_diffusers_step_by_step(make, parameterization, prediction_type, clip):
    network, schedule = Cubic(), make()
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    denoiser = Clip(denoiser) if clip else denoiser
    for variance, variance_type in {"posterior": "fixed_small", "transition": "fixed_large"}.items():
        theirs = reference(diffusers.DDPMScheduler, make, prediction_type, clip, variance_type=variance_type)
        sampler = DDPM(Trailing(), variance=variance)
        generator = torch.Generator().manual_seed(0)
        for t in (1000, 999, 500, 20, 2, 1):
            x_t = torch.randn(2, *SHAPE, generator=generator)
            z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
            times = torch.tensor([t, t - 1], dtype=torch.float64)
            x_s, _ = sampler.step(denoiser, x_t, times[0], times[1], lambda z=z: z, None)
            output = network(x_t, torch.full((2,), t - 1.0), None)
            expected = theirs.step(output, t - 1, x_t, generator=torch.Generator().manual_seed(t)).prev_sample
            torch.testing.assert_close(x_s, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("parameterization", "prediction_type"), PAIRS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ddim_equals_diffusers_step_by_step(make, parameterization, prediction_type, eta):
    network = Cubic()
    denoiser = NetworkDenoiser(network, make(), parameterization)
    theirs = reference(diffusers.DDIMScheduler, make, prediction_type, clip=False, set_alpha_to_one=True)
    theirs.set_timesteps(50)
    sampler = DDIM(Trailing(), 50, eta=eta)
    times = sampler.time_grid(denoiser.schedule, 50)
    assert theirs.timesteps.tolist() == [int(t) - 1 for t in times[:-1]]
    generator = torch.Generator().manual_seed(0)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_t = torch.randn(2, *SHAPE, generator=generator)
        z = torch.randn(x_t.shape, generator=generator)
        x_s, _ = sampler.step(denoiser, x_t, t, s, lambda z=z: z, None)
        output = network(x_t, torch.full((2,), float(t) - 1), None)
        expected = theirs.step(output, int(t) - 1, x_t, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(x_s, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ddim_under_clipping_takes_its_noise_from_the_clipped_estimate(make, eta):
    """As with use_clipped_model_output=True in diffusers, whose default ε̂ is inconsistent with the clipped x̂_0."""
    network, differs = Cubic(), []
    denoiser = Clip(NetworkDenoiser(network, make(), Eps()))
    theirs = reference(diffusers.DDIMScheduler, make, "epsilon", clip=True, set_alpha_to_one=True)
    theirs.set_timesteps(50)
    times, generator = Trailing()(denoiser.schedule, 50), torch.Generator().manual_seed(0)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_t, z = (torch.randn(2, *SHAPE, generator=generator) for _ in range(2))
        x_s, _ = DDIM(Trailing(), 50, eta=eta).step(denoiser, x_t, t, s, lambda z=z: z, None)
        output = network(x_t, torch.full((2,), float(t) - 1), None)
        step = functools.partial(theirs.step, output, int(t) - 1, x_t, eta=eta, variance_noise=z)
        expected = step(use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(x_s, expected, rtol=1e-5, atol=1e-5)
        differs.append(float((x_s - step(use_clipped_model_output=False).prev_sample).abs().max()))
    assert max(differs) > 0.1


@pytest.mark.parametrize("sampler", [DDPM(Trailing(), 20), DDIM(Trailing(), 20), DDIM(Trailing(), 20, eta=0.7)])
def test_a_sample_depends_only_on_seed_and_index(sampler):
    denoiser = Clip(NetworkDenoiser(Cubic(), schedules.cosine(), V()))
    whole = sampler.sample(denoiser, range(64), SHAPE, seed=1, batch_size=64)
    torch.testing.assert_close(sampler.sample(denoiser, range(64), SHAPE, seed=1, batch_size=7), whole)
    torch.testing.assert_close(sampler.sample(denoiser, range(10, 20), SHAPE, seed=1), whole[10:20])
    assert not torch.allclose(whole, sampler.sample(denoiser, range(64), SHAPE, seed=2))
    assert len(whole.flatten(1).unique(dim=0)) == 64


def test_labels_follow_their_samples():
    class Echo(torch.nn.Module):
        def forward(self, x, time, condition):
            return condition.label[:, None, None, None].expand_as(x).float()

    denoiser = NetworkDenoiser(Echo(), schedules.cosine(), X0())
    labels = torch.arange(10)
    x = DDIM(Trailing(), 5).sample(denoiser, range(10), SHAPE, seed=0, condition=by_label(labels), batch_size=3)
    torch.testing.assert_close(x[:, 0, 0, 0], labels.float())


def test_indexed_noise_feeds_the_walk():
    denoiser = NetworkDenoiser(Cubic(), schedules.cosine(), V())
    states = list(DDPM(Trailing(), 10).walk(denoiser, IndexedNoise(0, range(3), SHAPE)))
    assert len(states) == 11
    assert torch.equal(states[0], IndexedNoise(0, range(3), SHAPE)())


def test_grid_ends_at_zero_exactly():
    for T, n in ((1000, 1), (1000, 7), (1000, 64), (1000, 1000), (10, 10)):
        times = Trailing()(schedules.cosine(T=T), n)
        assert times[0] == T
        assert times[-1] == 0
        assert len(times) == n + 1
        assert (times.diff() < 0).all()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: DDIM(Trailing(), 0), "sampler.num_steps=0"),
        (lambda: DDIM(Trailing(), 10, eta=-0.1), "sampler.eta=-0.1"),
        (lambda: Trailing()(schedules.cosine(T=10), 50), "sampler.num_steps=50 and schedule.T=10"),
        (lambda: Clip(gaussian(schedules.cosine()), bound=0.0), "guidance.bound=0"),
    ],
)
def test_refusals(make, key):
    with pytest.raises(ValueError, match=key):
        make()


STARTS_BELOW_T = ("leading", "karras_brief")


@pytest.mark.parametrize("grid_name", options("time_grid"))
@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_every_grid_falls_from_the_noisy_end_to_zero_exactly(grid_name, name):
    schedule, grid = SCHEDULES[name], option("time_grid", grid_name)
    for n in (1, 2, 3, 10, 25):
        times = grid(schedule, n)
        assert len(times) == n + 1
        assert times[-1] == 0
        assert times[0] <= float(schedule.T)
        assert (times.diff() < 0).all()
        if grid_name not in STARTS_BELOW_T:
            assert times[0] == pytest.approx(float(schedule.T), rel=1e-9)


def test_grids_are_the_papers():
    edm, linear = SCHEDULES["edm"], SCHEDULES["linear"]
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # EDM Eq. 5
    torch.testing.assert_close(Karras()(edm, 18)[:-1], sigma)
    assert Trailing()(linear, 10).tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert Leading()(linear, 10).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert Linear()(linear, 10).tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0]
    assert Quadratic()(linear, 10).tolist() == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]
    lambdas = linear.logsnr(LogSNR()(linear, 10)[:-1])
    torch.testing.assert_close(lambdas.diff(), lambdas.diff().mean().expand(9))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_polynomial_through_the_estimates_has_their_coefficients(degree):
    """The estimates lie on a known polynomial in u, at uneven times, the newest at u = 0."""
    coefficients = torch.randn(degree + 1, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
    lam, h = torch.tensor([0.3, -0.2, -1.1, -1.5], dtype=F64)[: degree + 1], torch.tensor(0.7, dtype=F64)
    powers = ((lam - lam[0]) / h)[:, None] ** torch.arange(degree + 1)
    values = torch.einsum("nk,k...->n...", powers, coefficients)
    found = polynomial([Point(*pair) for pair in zip(lam, values, strict=True)], h)
    torch.testing.assert_close(torch.stack(found), coefficients, rtol=1e-10, atol=1e-10)


def test_integrals_of_the_multistep_formula():
    """ψ_1 and ψ_2 against the trapezoidal rule, and the approximation of ψ_1 in (2M)."""
    h, u = torch.tensor(0.7, dtype=F64), torch.linspace(0, 1, 20_001, dtype=F64)
    exact = [torch.trapezoid(u**k * torch.exp(-h * (1 - u)) * h, u) for k in (1, 2)]
    torch.testing.assert_close(torch.stack(integrals(h, 2)), torch.stack(exact), rtol=1e-7, atol=1e-8)
    (approximate,) = integrals(h, 1)
    assert float(approximate) == pytest.approx((1 - math.exp(-0.7)) / 2)
    assert integrals(h, 0) == []


STATED = {
    name: sampler
    for name, sampler in sampler_variants().items()
    if not sampler.adaptive and "learned" not in name  # a Gaussian has no learned variance
}


@pytest.mark.parametrize("name", STATED)
def test_a_sampler_takes_as_many_evaluations_as_it_states(name):
    """The first step and the last can take fewer."""
    sampler, denoiser = STATED[name], Counted(gaussian(make("cosine", T=500)))
    N = len(sampler.times(denoiser.schedule)) - 1
    sampler.sample(denoiser, [0], SHAPE, seed=0)
    most = N * sampler.evaluations + sampler.start_evaluations
    assert most - 2 * (sampler.evaluations - 1) <= denoiser.items <= most, f"{denoiser.items} in {N} steps"
