"""Every legal pairing of the yaml tree trains and samples without inf or NaN; the others are refused."""

import inspect

import pytest
import torch

from lightning_diffusion.diffusion.denoiser import Denoiser, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import Clip
from lightning_diffusion.diffusion.objective import Objective
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.edm import EDM
from lightning_diffusion.diffusion.time_grid import Trailing
from tests.diffusion.options import SCHEDULES, fresh, option, options

STEPS = 4
LIKE_OTHERS = (
    "quadratic",
    "scaled_linear",
    "sigmoid",
    "constant",
    "linear_zero",
)  # chains that differ from linear in their βs
EACH_SCHEDULE = [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS else []) for name in SCHEDULES]


class Tiny(torch.nn.Module):
    """A network whose output starts near 0, like a real one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        torch.nn.init.normal_(self.conv.weight, std=1e-2)

    def forward(self, x, time, condition):
        assert torch.isfinite(time).all()
        return self.conv(x) + 1e-3 * torch.sin(time)[:, None, None, None]


class EachItem(Denoiser):
    """One denoiser for each item of the batch, on the same schedule: one walk serves them all."""

    def __init__(self, denoisers):
        super().__init__()
        self.denoisers, self.schedule = torch.nn.ModuleList(denoisers), denoisers[0].schedule

    def forward(self, x_t, t, condition=None):
        items = zip(self.denoisers, x_t.split(1), t.expand(len(x_t)).split(1), strict=True)
        return torch.cat([one(x, time) for one, x, time in items])


def denoiser(schedule, parameterization):
    """Return the pairing's denoiser, or None if it is refused."""
    try:
        return NetworkDenoiser(Tiny(), schedule, parameterization)
    except ValueError as error:
        if not all(part in str(error) for part in ("parameterization=", "schedule", "choose")):
            raise
        return None


def finite_gradients(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("prediction", options("parameterization"))
@pytest.mark.parametrize("name", EACH_SCHEDULE)
def test_training(name, prediction):
    model = denoiser(SCHEDULES[name], option("parameterization", prediction))
    if model is None:
        return
    x_0 = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = {}
    for time_name in options("time_sampler"):
        for weighting_name in options("weighting"):
            objective = Objective(option("time_sampler", time_name), option("weighting", weighting_name))
            losses[time_name, weighting_name] = objective(model, x_0)
    assert [names for names, loss in losses.items() if not torch.isfinite(loss)] == []
    if not finite_gradients(model, sum(losses.values())):  # a sum hides no infinity: find whose it is
        assert [names for names, loss in losses.items() if not finite_gradients(model, loss)] == []
        pytest.fail("only the sum of the gradients is infinite")


@pytest.mark.parametrize("sampler_name", options("sampler"))
@pytest.mark.parametrize("name", EACH_SCHEDULE)
def test_sampling(name, sampler_name):
    schedule = SCHEDULES[name]
    sampler = fresh("sampler", sampler_name)
    sampler.num_steps, grids = STEPS, options("time_grid")
    if sampler.adaptive:
        sampler.num_steps, sampler.tolerance = 1, 0.1
        grids = ["trailing", "karras"]  # one step from end to end is the same on every grid; karras can be refused
    predictions = ("v", "eps")  # a sampler sees x̂_0 only: one that is bounded, and one that divides by α
    models = {of: denoiser(schedule, option("parameterization", of)) for of in predictions}
    models = {of: Clip(model) for of, model in models.items() if model is not None}
    together = [[of] for of in models] if sampler.adaptive else [list(models)]  # an adaptive one leaves out items
    for grid_name in grids:
        sampler.time_grid = option("time_grid", grid_name)
        try:
            sampler.times(schedule)
        except ValueError as error:
            if schedule.terminal_snr() > 0 or f"time_grid={grid_name} and schedule" not in str(error):
                raise
            continue
        for names in together:
            model = EachItem([models[of] for of in names])
            for of, x in zip(names, sampler.sample(model, range(len(names)), (1, 4, 4), seed=0), strict=True):
                assert torch.isfinite(x).all(), (name, sampler_name, of, grid_name)


def test_every_step_of_the_chain_needs_a_chain():
    sampler = fresh("sampler", "ddpm")
    for name, schedule in SCHEDULES.items():
        if not schedule.chain_length:
            with pytest.raises(ValueError, match="sampler.num_steps=null and schedule"):
                sampler.times(schedule)
        else:
            assert len(sampler.times(schedule)) == schedule.T + 1, name


@pytest.mark.parametrize("sampler_name", options("sampler"))
def test_only_stochastic_samplers_draw_noise(sampler_name):
    sampler, draws = fresh("sampler", sampler_name), []
    sampler.num_steps = STEPS

    def noise():
        draws.append(1)
        return torch.zeros(1, 1, 4, 4)

    for _ in sampler.walk(denoiser(SCHEDULES["cosine"], option("parameterization", "v")), noise):
        pass
    assert (len(draws) > 1) == sampler.stochastic


@pytest.mark.parametrize("sampler_name", options("sampler"))
def test_every_sampler_takes_its_time_grid_and_its_steps_first(sampler_name):
    assert list(inspect.signature(type(option("sampler", sampler_name))).parameters)[:2] == ["time_grid", "num_steps"]


def test_eta_and_churn_make_a_sampler_stochastic():
    assert not DDIM(Trailing(), eta=0.0).stochastic
    assert DDIM(Trailing(), eta=0.1).stochastic
    assert not EDM(Trailing(), churn=0.0).stochastic
    assert EDM(Trailing(), churn=1.0).stochastic
