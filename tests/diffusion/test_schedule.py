import math

import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion import continuous
from lightning_diffusion.diffusion.discrete import DiscreteSchedule
from tests.diffusion.options import NAMES, SCHEDULES, make, times


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("T", [1, 2, 10, 100, 1000, 4000])
def test_ends_at_the_data_and_at_noise(make, T):
    schedule = make(T=T)
    t = torch.arange(T + 1, dtype=torch.float64)
    assert schedule.alpha(t[:1]) == 1
    assert schedule.sigma(t[:1]) == 0
    assert (schedule.logsnr(t).diff() < 0).all()
    if T >= 10:
        assert schedule.terminal_snr() < 1e-3  # ᾱ_T stays near 0 at any T


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_falls_and_its_inverse_leads_back(name):
    """At training times, between them, and near both ends, where the log-SNR can be infinite."""
    schedule = SCHEDULES[name]
    T = float(schedule.T)
    between = torch.linspace(0, T, 1234, dtype=torch.float64)
    t = torch.cat([times(schedule, 1000), between, torch.tensor([1e-6, 1e-3, 0.3, 1 - 1e-6], dtype=torch.float64) * T])
    t = t.unique()
    logsnr = schedule.logsnr(t)
    assert (logsnr.diff() < 0).all()
    back = schedule.t_of_logsnr(logsnr)
    torch.testing.assert_close(back / T, t / T, rtol=1e-9, atol=1e-9)
    assert schedule.t_of_logsnr(logsnr[:1]) == 0
    assert (schedule.alpha(t[:1]), schedule.sigma(t[:1])) == (1, 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_discrete_schedules_keep_unit_variance_between_the_steps(name):
    schedule = SCHEDULES[name]
    if schedule.chain_length or name in ("vp", "shifted_cosine"):
        t = torch.linspace(0, float(schedule.T), 777, dtype=torch.float64)
        torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


def test_between_whole_numbers_the_log_snr_is_interpolated():
    schedule = schedules.linear()
    t = torch.tensor([10.0, 10.25, 11.0], dtype=torch.float64)
    left, middle, right = schedule.logsnr(t)
    torch.testing.assert_close(middle, 0.75 * left + 0.25 * right)


def test_zero_terminal_snr_keeps_the_first_step_and_ends_without_signal():
    plain, zero = schedules.linear(), schedules.linear(zero_terminal_snr=True)
    ends = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    assert zero.alpha(ends)[1] == 0
    torch.testing.assert_close(zero.alpha(ends)[0], plain.alpha(ends)[0], rtol=1e-14, atol=0)


def test_vp_is_the_limit_of_the_linear_chain():
    """β_min = 0.1, β_max = 20 on [0, 1] is DDPM's 1e-4 … 0.02 on 1000 steps, with an error that falls as 1/T."""
    vp, u = SCHEDULES["vp"], torch.linspace(0.1, 1, 10, dtype=torch.float64)
    errors = [float((schedules.linear(T=T).alpha(u * T) - vp.alpha(u)).abs().max()) for T in (1000, 2000, 4000)]
    assert errors[0] < 0.005
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_shapes_of_continuous_schedules():
    u = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert SCHEDULES["flow"].alpha(u).tolist() == [0.75, 0.0]
    cosine = SCHEDULES["shifted_cosine"]
    torch.testing.assert_close(cosine.alpha(u), torch.cos(u * torch.pi / 2), rtol=0, atol=1e-15)
    shifted = make("shifted_cosine", shift=0.25)
    torch.testing.assert_close(shifted.logsnr(u[:1]), cosine.logsnr(u[:1]) + 2 * math.log(0.25))
    sub = SCHEDULES["sub_vp"]
    torch.testing.assert_close(sub.sigma(u), SCHEDULES["vp"].sigma(u) ** 2)


def test_shape_and_dtype_of_t_are_kept():
    schedule = schedules.cosine()
    for t in (torch.tensor(5.0), torch.ones(3), torch.ones(2, 2, dtype=torch.float64)):
        for value in (schedule.alpha(t), schedule.sigma(t), schedule.logsnr(t)):
            assert value.shape == t.shape
            assert value.dtype == t.dtype


def test_steps_of_a_chain_can_be_integers():
    schedule, steps = schedules.linear(20), torch.arange(21)
    for scale in (schedule.alpha, schedule.sigma):
        assert torch.equal(scale(steps), scale(steps.float()))


def test_uniform_quantile_covers_1_to_T_evenly():
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = schedules.linear(T=100).quantile(u).long().bincount()
    assert counts[0] == 0
    assert (counts[1:] == 100).all()
    assert schedules.linear(T=100).quantile(torch.tensor(1.0)) == 100  # rounding can reach u = 1


@pytest.mark.parametrize(
    ("attempt", "key"),
    [
        (lambda: schedules.linear(T=0), "schedule.T=0"),
        (lambda: schedules.cosine(T=-5), "schedule.T=-5"),
        (lambda: schedules.linear(beta_1=-1e-4), "schedule.beta_1=-0.0001"),
        (lambda: schedules.linear(beta_1=0.1, beta_T=0.02), "schedule.beta_1=0.1"),
        (lambda: schedules.cosine(s=-1), "schedule.s=-1"),
        (lambda: DiscreteSchedule(torch.tensor([0.5, 1.5])), "every β must lie in"),
        (lambda: schedules.linear(T=1, zero_terminal_snr=True), "schedule.zero_terminal_snr=true and schedule.T=1"),
        (lambda: DiscreteSchedule(torch.tensor(0.1).expand(1_000_001)), "schedule: a chain of 1000001 steps is"),
        (lambda: schedules.custom(range(1_000_001)), "schedule.betas: a chain of 1000001 steps .* at most 1000000"),
        (lambda: schedules.constant(beta=1.0), "schedule.beta=1"),
        (lambda: continuous.VP(beta_min=-1.0), "schedule.beta_min=-1"),
        (lambda: continuous.EDM(sigma_min=3.0, sigma_max=2.0), "schedule.sigma_min=3.0, schedule.sigma_max=2.0"),
        (lambda: continuous.ShiftedCosine(shift=0.0), "schedule.shift=0"),
    ],
)
def test_invalid_schedules_are_refused(attempt, key):
    with pytest.raises(ValueError, match=key):
        attempt()


@pytest.mark.parametrize("make", [getattr(schedules, name) for name in NAMES if hasattr(schedules, name)])
def test_a_chain_has_at_most_a_million_steps(make):
    """The error precedes the allocation, which would not fit in memory."""
    if make is schedules.custom:
        return
    for T in (1_000_001, 10**18):
        with pytest.raises(ValueError, match=f"schedule.T={T}: a chain of {T} steps is .* at most 1000000"):
            make(T=T)


def test_the_clock_holds_all_times():
    assert torch.equal(schedules.linear(T=7).clock(), torch.arange(1, 8, dtype=torch.float64))
    for name in ("vp", "ve", "edm", "flow"):
        clock = SCHEDULES[name].clock()
        assert (clock[0], clock[-1]) == (SCHEDULES[name].t_min, SCHEDULES[name].T)
        assert (clock.diff() > 0).all()


def test_only_a_discrete_schedule_has_a_chain():
    assert schedules.linear(T=3).chain("key", "remedy").tolist() == [3, 2, 1, 0]
    for name, schedule in SCHEDULES.items():
        if isinstance(schedule, DiscreteSchedule):
            assert schedule.chain_length == schedule.T == len(schedule.chain("key", "remedy")) - 1, name
        else:
            assert schedule.chain_length == 0, name
            with pytest.raises(ValueError, match="^a=1 and schedule: .* is continuous .*schedule=cosine, or a=2$"):
                schedule.chain("a=1", "a=2")


def test_even_times_are_whole_steps_apart_on_a_chain():
    assert schedules.linear(T=10).spacing(3) == 3
    assert SCHEDULES["flow"].spacing(4) == 0.25


def test_a_chains_training_times_are_its_steps():
    schedule, t = schedules.linear(T=10), torch.tensor([-1.0, 0.2, 3.4, 3.6, 11.0])
    assert schedule.training_time(t).tolist() == [1, 1, 3, 4, 10]
    assert SCHEDULES["flow"].training_time(t).tolist() == pytest.approx([0, 0.2, 1, 1, 1])


def test_the_networks_clock_ends_at_1000_on_continuous_schedules():
    for name in ("vp", "sub_vp", "flow", "shifted_cosine"):
        assert SCHEDULES[name].network_time(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 500, 1000]
