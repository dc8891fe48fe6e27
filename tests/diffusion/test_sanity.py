"""Few steps of every sampler, on every schedule and time grid of conf/, give samples near the data."""

import pytest
import torch

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.samplers.edm import EDM
from lightning_diffusion.diffusion.time_grid import Trailing
from tests.diffusion.options import SCHEDULES, fresh, option, options
from tests.diffusion.truth import F64

USUAL = ["cosine", "edm"]
COUNTS = (4, 8, 32)
FAR = 2.5  # the data is within 1.8


class TwoHills(Denoiser):
    """The exact denoiser of independent pixels ±0.8 + 0.2 z."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, condition=None):
        alpha, sigma = (expand(scale(t), x_t) for scale in (self.schedule.alpha, self.schedule.sigma))
        var = 0.04 * alpha**2 + sigma**2
        hill = 0.8 * torch.tanh(0.8 * alpha * x_t / var)
        return hill + 0.04 * alpha / var * (x_t - alpha * hill)


def largest(sampler, denoiser):
    generator = torch.Generator().manual_seed(0)
    *_, x = sampler.walk(denoiser, lambda: torch.randn(2, 1, 4, 4, dtype=F64, generator=generator))
    return float(x.abs().max().nan_to_num(nan=torch.inf))


@pytest.mark.parametrize("sampler_name", options("sampler"))
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in USUAL else [pytest.mark.slow]) for n in SCHEDULES])
def test_few_steps_stay_where_the_data_is(name, sampler_name):
    sampler, denoiser = fresh("sampler", sampler_name), TwoHills(SCHEDULES[name])
    counts = COUNTS
    if sampler.adaptive:
        sampler.tolerance, counts = 0.01, (4,)
    for grid_name in options("time_grid"):
        sampler.time_grid = option("time_grid", grid_name)
        for sampler.num_steps in counts:
            schedule, refusal = denoiser.schedule, None
            if grid_name == "karras" and schedule.terminal_snr() == 0:
                refusal = "^time_grid=karras and schedule: .*choose"
            if grid_name == "quadratic" and name == "custom" and sampler.num_steps == 32:  # of 45 times
                refusal = "^sampler.num_steps=32 and schedule.T=45: .*choose"
            if refusal is not None:
                with pytest.raises(ValueError, match=refusal):
                    sampler.check(denoiser)
                continue
            assert largest(sampler, denoiser) < FAR, (grid_name, sampler.num_steps)


@pytest.mark.parametrize("name", ["cosine", "jsd", "flow", "edm", "linear_zero"])
def test_churn_adds_no_noise_where_the_clock_ends(name):
    """At T no noise can be added, however much signal is left: the denoiser would take the noise for data."""
    schedule, drawn = SCHEDULES[name], []
    x = schedule.prior_std * torch.ones(1, 1, 2, 2, dtype=F64)

    def noise():
        drawn.append(1)
        return torch.zeros_like(x)

    times = Trailing()(schedule, 8)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x, _ = EDM(Trailing(), 8, churn=40.0).step(TwoHills(schedule), x, t, s, noise, None)
        assert torch.isfinite(x).all()
        assert not drawn or t < schedule.T
    assert drawn
