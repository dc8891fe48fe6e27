"""Sample grids: always from the same noise, and within a share of the time."""

import time

import pytest

from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.training.callbacks import budget as budgets
from lightning_diffusion.training.callbacks.budget import Budget
from lightning_diffusion.training.callbacks.samples import SampleGrid
from tests import runs


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def test_work_stays_within_its_share_of_the_time(monkeypatch):
    """Ten seconds of work after every ten seconds: of a tenth of the time, one of ten."""
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    budget, done = Budget(0.1), []
    for number in range(100):
        clock.now += 10
        if budget.allows_another():
            with budget.counted():
                clock.now += 10
            done.append(number)
    assert done[0] == 0  # the first one tells how long it takes
    assert 10 * len(done) <= 0.1 * (clock.now - 100) < 10 * (len(done) + 1)


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (1.0, 10)])
def test_grids_that_would_take_more_are_left_out_but_the_last(tmp_path, monkeypatch, share, count):
    grid, draw = SampleGrid(str(tmp_path), 2, num_samples=4, share=share), DiffusionModel.draw
    monkeypatch.setattr(DiffusionModel, "draw", lambda *a, **k: time.sleep(0.02) or draw(*a, **k))
    module = runs.module()
    module.ema.model.sampler = DDIM(Trailing(), 2)
    runs.trainer(21, [grid]).fit(module, runs.digits())
    assert len(list(tmp_path.glob("step_*.png"))) == count
    assert (tmp_path / "final.png").exists()
    assert (tmp_path / "trajectory.gif").exists()


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1.5}, {"num_samples": 0}])
def test_refuses_values_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match=r"callbacks.samples.every_n_steps=2, num_samples=\d+, share="):
        SampleGrid(str(tmp_path), 2, **options)
