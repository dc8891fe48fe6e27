"""Importance-sampled training times: unbiased, less noisy, and the same on every rank."""

import pytest
import torch
from torch import distributed, multiprocessing

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.time_sampler import Importance, Times
from tests import runs
from tests.diffusion.options import SCHEDULES


def loss(t, T):
    """Large near the data, like the terms of a variational bound."""
    return (0.05 + (1 - t / T) ** 6).float()


def experienced(schedule, num_bins=20, rounds=300):
    sampler = Importance(num_bins, uniform_share=0.01, warmup=1)
    torch.manual_seed(0)
    for _ in range(rounds):
        times = sampler(64, schedule, BatchRNG())
        sampler.observe(times, loss(times.t, schedule.T))
    return sampler


@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
def test_the_weighted_loss_is_that_of_uniform_times_with_less_noise(name):
    schedule = SCHEDULES[name]
    sampler, count = experienced(schedule), 200_000
    times = sampler(count, schedule, BatchRNG())
    weighted = times.weight * loss(times.t, schedule.T)
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    uniform = loss(schedule.quantile(u), schedule.T).double()
    assert abs(float(weighted.mean()) - float(uniform.mean())) < 5 * float(weighted.std()) / count**0.5
    assert float(weighted.var()) < 0.25 * float(uniform.var())
    assert float(times.weight.mean()) == pytest.approx(1, abs=0.05)


def test_probabilities_follow_the_root_of_the_second_moment():
    schedule = SCHEDULES["linear"]
    sampler = experienced(schedule)
    k = torch.arange(20)
    edges = [schedule.quantile(((k + share) / 20).float()) for share in torch.linspace(0, 0.999, 50)]
    expected = torch.stack([loss(t, schedule.T) ** 2 for t in edges]).mean(0).sqrt()
    expected = 0.99 * expected / expected.sum() + 0.01 / 20
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=0.1, atol=1e-4)
    drawn = (sampler(100_000, schedule, BatchRNG()).u * 20).long().bincount(minlength=20) / 100_000
    torch.testing.assert_close(drawn, sampler.probabilities(), rtol=0, atol=5 * 0.5 / 100_000**0.5)


def test_times_are_uniform_until_every_bin_is_known():
    schedule, sampler = schedules.linear(), Importance(num_bins=4, warmup=2)
    u = torch.tensor([0.1, 0.3, 0.6, 0.9])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sampler.observe(Times(u, u, u), losses)
    assert (sampler(100, schedule, BatchRNG()).weight == 1).all()
    sampler.observe(Times(u, u, u), losses)
    torch.testing.assert_close(sampler.probabilities(), 0.999 * losses / 10 + 0.001 / 4)


def test_a_bin_that_a_batch_misses_keeps_its_mean():
    sampler = Importance(num_bins=2, decay=0.5, warmup=1)
    for value in (1.0, 3.0, 3.0):
        u = torch.tensor([0.2, 0.3])
        sampler.observe(Times(u, u, u), torch.full((2,), value))
    assert sampler.second_moment.tolist() == [7.0, 0.0]  # 1, then (1 + 9)/2, then (5 + 9)/2
    assert sampler.batches.tolist() == [3, 0]


def test_its_state_is_part_of_the_checkpoint():
    module = runs.module()
    module.objective.time_sampler = Importance(num_bins=3)
    names = {name for name in module.state_dict() if name.startswith("objective.")}
    assert names == {"objective.time_sampler.second_moment", "objective.time_sampler.batches"}


def one_rank(rank, store, results):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sampler = Importance(num_bins=4, warmup=1)
    u = torch.tensor([[0.1, 0.3], [0.3, 0.9]])[rank]
    sampler.observe(Times(u, u, u), torch.tensor([[1.0, 2.0], [4.0, 5.0]])[rank])
    torch.save(sampler.state_dict(), f"{results}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_learn_from_each_other(tmp_path):
    multiprocessing.start_processes(one_rank, (f"{tmp_path}/store", str(tmp_path)), nprocs=2, start_method="fork")
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert state["second_moment"].tolist() == [1.0, 10.0, 0.0, 25.0]
        assert state["batches"].tolist() == [1, 1, 0, 1]


def test_refusals():
    for options in ({"num_bins": 0}, {"decay": 1.0}, {"uniform_share": 0.0}, {"warmup": 0}):
        (key,) = options
        with pytest.raises(ValueError, match=f"{key}={next(iter(options.values()))}"):
            Importance(**options)
