"""The probability flow and the adaptive solver, against exact solutions and torchdiffeq."""

import math

import pytest
import torch
from torchdiffeq import odeint

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion.denoiser import Conditioned, Denoiser
from lightning_diffusion.diffusion.probability_flow import angle, radius, time_of, transport
from lightning_diffusion.diffusion.runge_kutta import DORMAND_PRINCE, Tableau, solve
from lightning_diffusion.diffusion.samplers.ode import ODE
from lightning_diffusion.diffusion.time_grid import LogSNR, Trailing
from tests.diffusion.options import SCHEDULES, times
from tests.diffusion.truth import F64, gaussian, mixture, points, probability_flow


@pytest.mark.parametrize("name", SCHEDULES)
def test_angle_is_a_clock(name):
    schedule = SCHEDULES[name]
    t = times(schedule, 9)
    theta = angle(schedule, t)
    assert (theta.diff() > 0).all()
    assert theta[0] > 0
    assert theta[-1] <= math.pi / 2
    torch.testing.assert_close(time_of(schedule, theta), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "sub_vp", "shifted_cosine", "linear", "linear_zero"])
def test_transport_is_the_exact_flow_both_ways(name):
    """Also from the end of a schedule that leaves no signal, where α = 0."""
    denoiser = gaussian(SCHEDULES[name])
    schedule, x = denoiser.schedule, points(8, 3) * denoiser.schedule.prior_std
    t, s = schedule.end, schedule.nearest(schedule.end / 50)
    there = transport(denoiser, x, t, s, 1e-8)
    torch.testing.assert_close(there, denoiser.transport(x, t, s), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(transport(denoiser, there, s, t, 1e-8), x, rtol=1e-4, atol=1e-5)


def test_the_error_follows_the_tolerance():
    denoiser, x = mixture(SCHEDULES["vp"]), points(64, 2)
    t, s = denoiser.schedule.end, torch.tensor(0.01, dtype=F64)
    exact = probability_flow(denoiser, x, torch.stack([t, s]))[-1]
    for tolerance in (1e-3, 1e-5, 1e-7):
        error = (transport(denoiser, x, t, s, tolerance) - exact).square().mean().sqrt()
        assert float(error) < 10 * tolerance, tolerance


def test_solution_is_that_of_torchdiffeq():
    y = points(5, 3)

    def f(theta, y):
        return torch.sin(3 * y) - theta * y.roll(1, dims=1)

    ours = solve(lambda y, theta, items: f(theta[:, None], y), y, 0.2, 2.0, 1e-9)
    reference = odeint(f, y, torch.tensor([0.2, 2.0], dtype=F64), rtol=1e-11, atol=1e-11, method="dopri5")[-1]
    torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-7)


BOGACKI_SHAMPINE = Tableau(
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    c=(1 / 2, 3 / 4, 1.0),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    order=3,
)
TABLEAUS = pytest.mark.parametrize("tableau", [DORMAND_PRINCE, BOGACKI_SHAMPINE], ids=["5(4)", "3(2)"])


@TABLEAUS
def test_a_tableau_integrates_polynomials_up_to_its_order(tableau):
    order, one = tableau.order, torch.ones(1, 1, dtype=F64)
    y = solve(lambda y, time, items: order * time[:, None] ** (order - 1), 0 * one, 0.0, 1.0, 1e-3, tableau)
    assert abs(float(y) - 1) < 1e-12


@TABLEAUS
def test_a_tableaus_coefficients_satisfy_the_quadrature_conditions(tableau):
    """Σ_j a_ij = c_i; Σ_i b_i c_i^k = 1/(k + 1) up to the order, and one less for the embedded method."""
    assert [sum(row) for row in tableau.a] == pytest.approx(list(tableau.c))
    nodes, solution = (0.0, *tableau.c), (*tableau.a[-1], 0.0)
    embedded = [b - e for b, e in zip(solution, tableau.error, strict=True)]
    for weights, order in ((solution, tableau.order), (embedded, tableau.order - 1)):
        moments = [sum(b * c**k for b, c in zip(weights, nodes, strict=True)) for k in range(order + 1)]
        assert moments[:order] == pytest.approx([1 / (k + 1) for k in range(order)])
        assert abs(moments[order] - 1 / (order + 1)) > 1e-4


class Labelled(Denoiser):
    """One mixture for label 0, the same mirrored for label 1."""

    def __init__(self):
        super().__init__()
        self.inner = mixture(SCHEDULES["vp"])
        self.schedule, self.evaluated = self.inner.schedule, 0

    def forward(self, x_t, t, condition=None):
        self.evaluated += len(x_t)
        sign = (1 - 2 * condition.label[:, None]).to(x_t)
        return sign * self.inner(sign * x_t, t)


def test_an_item_is_solved_independently_of_the_others():
    denoiser, x = Labelled(), points(16, 2)
    condition = by_label(torch.arange(16) % 2)
    t, s = denoiser.schedule.end, torch.tensor(1e-3, dtype=F64)
    together = transport(Conditioned(denoiser, condition), x, t, s, 1e-5)
    count = denoiser.evaluated
    singly = [transport(Conditioned(denoiser, condition[i : i + 1]), x[i : i + 1], t, s, 1e-5) for i in range(16)]
    torch.testing.assert_close(together, torch.cat(singly), rtol=1e-9, atol=1e-9)
    assert denoiser.evaluated == 2 * count  # at the same cost: no item waits for the hardest


@pytest.mark.parametrize("name", ["vp", "edm", "cosine_zero"])
def test_sampler_follows_the_flow_with_any_number_of_segments(name):
    denoiser = gaussian(SCHEDULES[name])
    x = points(32, 3)
    start = x * denoiser.schedule.prior_std
    exact = denoiser.transport(start, denoiser.schedule.end, torch.tensor(0.0, dtype=F64))
    for sampler in (ODE(Trailing(), 1), ODE(Trailing(), 7), ODE(LogSNR(), 3, tolerance=1e-6)):
        *_, x_0 = sampler.walk(denoiser, lambda: x)
        assert (
            float((x_0 - exact).square().mean().sqrt()) < 5e-3
        )  # the flow does not remove the noise of the first time


def test_sampler_follows_the_flow_to_the_first_time_and_takes_the_estimate_there():
    denoiser, x = gaussian(SCHEDULES["vp"]), points(8, 3)
    first = torch.tensor(denoiser.schedule.t_min, dtype=F64)
    expected = denoiser(denoiser.transport(x, denoiser.schedule.end, first), first)
    *_, x_0 = ODE(Trailing(), 4, tolerance=1e-6).walk(denoiser, lambda: x)
    torch.testing.assert_close(x_0, expected, rtol=1e-5, atol=1e-5)


def test_nan_ends_the_solver():
    y = solve(lambda y, theta, items: y * torch.nan, points(2, 3), 1.0, 0.0, 1e-4)
    assert torch.isnan(y).all()


def test_a_jump_of_the_slope_does_not_stop_the_solver():
    """At the jump, the steps shrink to the shortest, which is always accepted."""
    y = solve(lambda y, theta, items: torch.sign(theta - 0.37)[:, None], torch.zeros(1, 1, dtype=F64), 1.0, 0.0, 1e-9)
    assert abs(float(y) + 0.63 - 0.37) < 1e-3


def test_radius():
    schedule = SCHEDULES["edm"]
    assert float(radius(schedule, torch.tensor(3.0, dtype=F64))) == pytest.approx(10**0.5)


def test_refusals():
    with pytest.raises(ValueError, match="sampler.tolerance=1e-08"):
        ODE(Trailing(), tolerance=1e-8)
