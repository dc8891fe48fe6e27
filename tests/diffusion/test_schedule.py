import pytest
import torch

from src.diffusion import schedule as schedules


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


def test_shape_and_dtype_of_t_are_kept():
    schedule = schedules.cosine()
    for t in (torch.tensor(5.0), torch.ones(3), torch.ones(2, 2, dtype=torch.float64)):
        for value in (schedule.alpha(t), schedule.sigma(t), schedule.logsnr(t)):
            assert value.shape == t.shape
            assert value.dtype == t.dtype


def test_uniform_quantile_covers_1_to_T_evenly():
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = schedules.linear(T=100).quantile(u).long().bincount()
    assert counts[0] == 0
    assert (counts[1:] == 100).all()
    assert schedules.linear(T=100).quantile(torch.tensor(1.0)) == 100  # rounding may reach u = 1


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: schedules.linear(T=0), "schedule.T=0"),
        (lambda: schedules.cosine(T=-5), "schedule.T=-5"),
        (lambda: schedules.linear(beta_1=-1e-4), "schedule.beta_1=-0.0001"),
        (lambda: schedules.linear(beta_1=0.1, beta_T=0.02), "schedule.beta_1=0.1"),
        (lambda: schedules.cosine(s=-1), "schedule.s=-1"),
        (lambda: schedules.DiscreteSchedule(torch.tensor([0.5, 1.5])), "every β must lie in"),
    ],
)
def test_refuses_what_is_no_schedule(make, key):
    with pytest.raises(ValueError, match=key):
        make()
