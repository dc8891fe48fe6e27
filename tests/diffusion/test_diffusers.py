"""Higher-order samplers against diffusers' schedulers, step by step on the same states and noise.

Where the two define the same thing they agree to 1e-5. Where they do not:

- DPM-Solver++(3M): diffusers weighs the second divided difference by half of what third order needs; ours is proven
  by its measured order instead.
- In diffusers, UniPC of order 3 lowers its order on the last but one step, here only on the last. Both of order 3
  start with a single step here, and with Euler's there.
- Euler works on x/α in float32 there, which at the cosine schedule's end is 20,000 times x and has three digits left;
  it is compared on the linear schedule.
- Heun takes the mean of the slopes in σ/α there, ours of those in α and in σ; they are the same where α = 1.
- Tables: diffusers keeps ᾱ in float32, where 1 − ᾱ is off by 1e-4 at small t; it is handed float64 tables.
"""

import diffusers
import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.denoiser import Denoiser, NetworkDenoiser
from lightning_diffusion.diffusion.parameterization import X0, Eps, V
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.samplers.dpm_solver import DPMSolverMultistep, DPMSolverSDE, DPMSolverSinglestep
from lightning_diffusion.diffusion.samplers.euler import Euler, Heun
from lightning_diffusion.diffusion.samplers.unipc import UniPC
from lightning_diffusion.diffusion.time_grid import Trailing
from tests.diffusion.options import SCHEDULES
from tests.diffusion.test_samplers import PAIRS, SHAPE, reference
from tests.diffusion.truth import F64

N = 20


class Bounded(torch.nn.Module):
    """Some network whose walks do not run away."""

    def forward(self, x, time, condition):
        return 0.7 * torch.tanh(x) + 0.1 * torch.sin(time / 100)[:, None, None, None]


def theirs(scheduler_class, make, prediction_type, **options):
    scheduler = reference(scheduler_class, make, prediction_type, clip=None, **options)
    scheduler.set_timesteps(N)
    return scheduler


def differing_steps(sampler, scheduler, make, parameterization, evaluations=1, scaled=False, noisy=False):
    """Feeds both the same x at every step (diffusers' own result of the last); the steps whose results differ by 1e-5.

    scaled: the scheduler works on x/α. evaluations: calls of the scheduler in one step of ours.
    """
    network, schedule = Bounded(), make()
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    times = sampler.times(schedule)
    generator = torch.Generator().manual_seed(0)
    x, state, calls = torch.randn(2, *SHAPE, dtype=F64, generator=generator), None, iter(scheduler.timesteps)
    differing = []
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        z = torch.randn(x.shape, dtype=F64, generator=generator)
        ours, state = sampler.step(denoiser, x, t, s, lambda z=z: z, state)
        y, level = x, t
        for k in range(1 if s == 0 else evaluations):
            alpha = expand(schedule.alpha(level), x)
            output = network(y, torch.full((2,), float(level) - 1), None)
            extra = {"variance_noise": z} if noisy else {}
            before = y / alpha if scaled else y
            after = scheduler.step(output, next(calls), before, **extra).prev_sample
            level = s if k == 0 else level
            y = after * expand(schedule.alpha(s), x) if scaled else after
        if not torch.allclose(ours, y.to(ours), rtol=1e-5, atol=1e-5):
            differing.append(i)
        x = y
    return differing


@pytest.mark.parametrize(("parameterization", "prediction_type"), PAIRS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
class TestEqual:
    @pytest.mark.parametrize("order", [1, 2])
    def test_dpm_multistep(self, make, parameterization, prediction_type, order):
        scheduler = theirs(diffusers.DPMSolverMultistepScheduler, make, prediction_type, solver_order=order)
        assert not differing_steps(DPMSolverMultistep(Trailing(), N, order), scheduler, make, parameterization)

    def test_dpm_sde(self, make, parameterization, prediction_type):
        options = {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}
        scheduler = theirs(diffusers.DPMSolverMultistepScheduler, make, prediction_type, **options)
        assert not differing_steps(DPMSolverSDE(Trailing(), N), scheduler, make, parameterization, noisy=True)

    @pytest.mark.parametrize("order", [1, 2])
    def test_unipc(self, make, parameterization, prediction_type, order):
        options = {"solver_order": order, "solver_type": "bh2", "final_sigmas_type": "zero"}
        scheduler = theirs(diffusers.UniPCMultistepScheduler, make, prediction_type, **options)
        assert not differing_steps(UniPC(Trailing(), N, order), scheduler, make, parameterization)


def test_unipc_of_order_3_differs_on_the_last_step_but_one_alone():
    """There diffusers goes down to order 2; the last step is of order 1 in both."""
    options = {"solver_order": 3, "solver_type": "bh2", "final_sigmas_type": "zero"}
    scheduler = theirs(diffusers.UniPCMultistepScheduler, schedules.linear, "epsilon", **options)
    sampler = UniPC(Trailing(), N, 3)
    sampler.order = 3  # what diffusers' start is good for, so that ours is the same
    assert differing_steps(sampler, scheduler, schedules.linear, Eps()) == [N - 2]


def test_dpm_solver_of_order_3_differs_where_the_third_order_is_used():
    scheduler = theirs(diffusers.DPMSolverMultistepScheduler, schedules.linear, "epsilon", solver_order=3)
    steps = differing_steps(DPMSolverMultistep(Trailing(), N, 3), scheduler, schedules.linear, Eps())
    assert steps[:2] == [0, 2]  # a single step of second order, then (2M)
    assert N - 1 not in steps


@pytest.mark.parametrize(("parameterization", "prediction_type"), PAIRS)
class TestEqualInScaledCoordinates:
    make = staticmethod(schedules.linear)

    def test_euler(self, parameterization, prediction_type):
        scheduler = theirs(diffusers.EulerDiscreteScheduler, self.make, prediction_type)
        assert not differing_steps(Euler(Trailing(), N), scheduler, self.make, parameterization, scaled=True)


def test_heun_equals_diffusers_where_alpha_is_1():
    """Their rule is the trapezoid in σ/α on every schedule, which is ours on EDM's."""
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="linear", use_karras_sigmas=True)
    scheduler.set_timesteps(N)
    schedule, levels = SCHEDULES["edm"], scheduler.sigmas.double().unique_consecutive()
    denoiser, calls = Bent(schedule), iter(scheduler.timesteps)
    x = levels[0] * torch.randn(2, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        ours, y = Heun(Trailing(), N).step(denoiser, x, t, s, None, None)[0], x
        for level in (t,) if s == 0 else (t, s):
            y = scheduler.step((y - denoiser(y, level)) / level, next(calls), y).prev_sample
        torch.testing.assert_close(ours, y, rtol=1e-6, atol=1e-6)
        x = y


class Bent(Denoiser):
    """Some x̂_0 that depends on x and σ."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, condition=None):
        sigma = self.schedule.sigma(t)
        return torch.tanh(0.7 * x_t / (1 + sigma)) - 0.1 * torch.sin(sigma)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_dpm_of_first_order_is_ddim_and_euler(make):
    from lightning_diffusion.diffusion.samplers.ddim import DDIM

    for parameterization in (Eps(), X0(), V()):
        denoiser = NetworkDenoiser(Bounded(), make(), parameterization)
        x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        times = Trailing()(denoiser.schedule, N)
        for t, s in zip(times[:-1], times[1:], strict=True):
            steps = [
                sampler.step(denoiser, x, t, s, None, None)[0]
                for sampler in (DDIM(Trailing()), Euler(Trailing(), N), DPMSolverMultistep(Trailing(), order=1))
            ]
            torch.testing.assert_close(steps[0], steps[1], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(steps[0], steps[2], rtol=1e-6, atol=1e-6)
            x = steps[0].clamp(-2, 2)


def test_singlestep_takes_the_midpoint_in_log_snr():
    """x_s with the slope at the middle of the step, written down from DPM-Solver++ Alg. 1 with r = 1/2."""
    schedule = schedules.linear()
    denoiser = NetworkDenoiser(Bounded(), schedule, Eps())
    x, (t, s) = torch.randn(2, *SHAPE, dtype=torch.float64), torch.tensor([600.0, 400.0], dtype=torch.float64)
    r = schedule.t_of_logsnr((schedule.logsnr(t) + schedule.logsnr(s)) / 2)
    h = (schedule.logsnr(s) - schedule.logsnr(t)) / 2

    def step(x, D, t, s, h):
        return schedule.sigma(s) / schedule.sigma(t) * x - schedule.alpha(s) * torch.expm1(-h) * D

    D = denoiser(x, t)
    u = step(x, D, t, r, h / 2)
    expected = step(x, denoiser(u, r), t, s, h)
    torch.testing.assert_close(DPMSolverSinglestep(Trailing()).step(denoiser, x, t, s, None, None)[0], expected)
